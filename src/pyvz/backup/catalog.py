"""The catalog of a tree of files: one entry per file, and where its content is.

Entries are JSON lines, in the order of the walk (a directory before what is in it), cut into
chunks.  A cut comes after an entry whose path hashes to a certain value, so that a change in
one directory leaves the chunks of the others as they were.
"""

from __future__ import annotations

import json
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pyvz.backup import chunk
from pyvz.backup.chunk import Writer
from pyvz.errors import BackupDamaged

_CUT: Final = 512  # one entry of so many ends a chunk, ...
_MAX: Final = chunk.SIZE - (64 << 10)  # ... and at the latest this many bytes do
_LINE_MAX: Final = chunk.SIZE
_DIGEST: Final = 32


class Piece(NamedTuple):
    """LENGTH bytes of a file from OFFSET on: those of the chunk from AT on."""

    offset: int
    length: int
    chunk: bytes
    at: int


class Stamp(NamedTuple):
    """What changes whenever a file's content does (inode, size, mtime, ctime in ns)."""

    inode: int
    size: int
    mtime: int
    ctime: int


@dataclass(slots=True)
class Entry:
    """A file of any kind; path: relative to the tree, "." for its root.

    link: where a symbolic link leads.  same: the path, earlier in the catalog, of the file of
    which this is another name.  xattrs: name -> value.  pieces: content, in order; gaps are holes.
    """

    path: str
    mode: int
    uid: int
    gid: int
    stamp: Stamp
    rdev: tuple[int, int] = (0, 0)
    link: str = ""
    same: str = ""
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file with its own content here."""
        return stat.S_ISREG(self.mode) and not self.same


def store(entries: Iterable[Entry], writer: Writer) -> tuple[str, ...]:
    """Store a catalog; return the names of its chunks."""
    pages: list[str] = []
    lines: list[bytes] = []
    size = 0
    for entry in entries:
        for line in _lines(entry):
            if size + len(line) > _MAX and lines:
                pages.append(writer.put(b"".join(lines)).hex())
                lines, size = [], 0
            lines.append(line)
            size += len(line)
        if zlib.crc32(entry.path.encode("utf-8", "surrogateescape")) % _CUT == 0:
            pages.append(writer.put(b"".join(lines)).hex())
            lines, size = [], 0
    if lines:
        pages.append(writer.put(b"".join(lines)).hex())
    return tuple(pages)


def load(pages: Sequence[str], get: Callable[[bytes], bytes]) -> Iterator[Entry]:
    """Yield the entries of a catalog; raises BackupDamaged."""
    last: Entry | None = None
    for page in pages:
        for line in get(bytes.fromhex(page)).splitlines():
            entry = _entry(line, page)
            if last is not None and entry.path == last.path:
                last.pieces += entry.pieces
                continue
            if last is not None:
                yield last
            last = entry
    if last is not None:
        yield last


_PIECES: Final = 1024  # of one line: a file of 256 MiB


def _lines(entry: Entry) -> Iterator[bytes]:
    """Yield the entry as lines: one with everything, and further ones for more pieces."""
    line: dict[str, object] = {
        "p": entry.path,
        "m": entry.mode,
        "u": entry.uid,
        "g": entry.gid,
        "s": list(entry.stamp),
    }
    if entry.rdev != (0, 0):
        line["r"] = list(entry.rdev)
    if entry.link:
        line["l"] = entry.link
    if entry.same:
        line["h"] = entry.same
    if entry.xattrs:
        line["x"] = {name: value.hex() for name, value in entry.xattrs.items()}
    parts = [entry.pieces[at : at + _PIECES] for at in range(0, len(entry.pieces), _PIECES)]
    for part in parts or [[]]:
        if part:
            line["d"] = [[p.offset, p.length, p.chunk.hex(), p.at] for p in part]
        # ASCII only: names that are no UTF-8 survive as escaped surrogates.
        yield json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"
        line.pop("x", None)


def _entry(line: bytes, page: str) -> Entry:
    try:
        raw = json.loads(line)
        entry = Entry(
            path=str(raw["p"]),
            mode=int(raw["m"]),
            uid=int(raw["u"]),
            gid=int(raw["g"]),
            stamp=Stamp(*map(int, raw["s"])),
            rdev=tuple(map(int, raw.get("r", (0, 0)))),  # type: ignore[arg-type]
            link=str(raw.get("l", "")),
            same=str(raw.get("h", "")),
            xattrs={str(k): bytes.fromhex(v) for k, v in raw.get("x", {}).items()},
            pieces=[_piece(*each) for each in raw.get("d", ())],
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BackupDamaged(f"chunk {page} is no part of a catalog of files") from error
    for path in (entry.path, entry.same):
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise BackupDamaged(f"chunk {page} names a path outside the tree")
    return entry


def _piece(offset: int, length: int, digest: str, at: int) -> Piece:
    name = bytes.fromhex(digest)
    whole = all(isinstance(number, int) and number >= 0 for number in (offset, length, at))
    if len(name) != _DIGEST or not whole:
        raise ValueError("piece")
    return Piece(offset, length, name, at)
