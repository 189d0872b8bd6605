"""Whether two trees are the same, byte by byte: the proof of a copy.

Compared are names, kinds, modes, owners, times of files, links, device numbers, extended
attributes (ACLs and capabilities are such), which names are the same file, and all contents.  No
link is followed and nothing is opened but regular files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pyvz.linux import xattr
from pyvz.model.task import NoProgress, Progress

_CHUNK = 1 << 20
_MAKER = "lost+found"  # of an ext4's root, made by mkfs


class Comparison(NamedTuple):
    """files: how many names were compared.  difference: the first one in words, or empty."""

    files: int
    difference: str


def compare(one: Path, other: Path, progress: Progress | None = None) -> Comparison:
    """Compare two directories with all in them; OSErrors of reading come out."""
    progress = progress or NoProgress()
    files = 0
    if found := _facts(one, other):
        return Comparison(files, f"the directory itself: {found}")
    same: dict[tuple[int, int], tuple[int, int]] = {}
    for left, right, path in _pairs(one, other):
        progress.check()
        files += 1
        if left is None or right is None:
            return Comparison(files, f"{path} is in one of them only")
        found = _facts(left, right) or _same_file(same, left, right) or _content(left, right)
        if found:
            return Comparison(files, f"{path}: {found}")
    return Comparison(files, "")


def _pairs(one: Path, other: Path) -> Iterator[tuple[Path | None, Path | None, str]]:
    stack = [""]
    while stack:
        at = stack.pop()
        names = [{entry.name for entry in os.scandir(top / at)} for top in (one, other)]
        for name in sorted(names[0] | names[1]):
            path = f"{at}/{name}".lstrip("/")
            sides = [
                top / path if name in known else None
                for top, known in zip((one, other), names, strict=True)
            ]
            if None in sides and path == _MAKER and _is_empty(sides[0] or sides[1]):
                continue
            yield sides[0], sides[1], path
            if sides[0] is not None and stat.S_ISDIR(sides[0].lstat().st_mode):
                stack.append(path)


def _is_empty(path: Path | None) -> bool:
    return path is not None and path.is_dir() and not path.is_symlink() and not os.listdir(path)


def _facts(left: Path, right: Path) -> str:
    a, b = left.lstat(), right.lstat()
    kind = a.st_mode
    facts = [
        ("mode", a.st_mode, b.st_mode),
        ("owner", (a.st_uid, a.st_gid), (b.st_uid, b.st_gid)),
    ]
    if stat.S_ISREG(kind):
        facts += [("size", a.st_size, b.st_size), ("time", a.st_mtime_ns, b.st_mtime_ns)]
    if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
        facts.append(("device", a.st_rdev, b.st_rdev))
    for what, x, y in facts:
        if x != y:
            return f"{what} {x} and {y}"
    if stat.S_ISLNK(kind) and os.readlink(left) != os.readlink(right):
        return "another target"
    return "" if _attributes(left) == _attributes(right) else "extended attributes"


def _attributes(path: Path) -> dict[str, bytes]:
    names = xattr.names(path)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def _same_file(known: dict[tuple[int, int], tuple[int, int]], left: Path, right: Path) -> str:
    a, b = left.lstat(), right.lstat()
    if a.st_nlink < 2 or stat.S_ISDIR(a.st_mode):
        return "" if b.st_nlink < 2 or stat.S_ISDIR(b.st_mode) else "hard links"
    key, value = (a.st_dev, a.st_ino), (b.st_dev, b.st_ino)
    return "" if known.setdefault(key, value) == value else "hard links"


def _content(left: Path, right: Path) -> str:
    if not stat.S_ISREG(left.lstat().st_mode):
        return ""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with (
        os.fdopen(os.open(left, flags), "rb", buffering=0) as a,
        os.fdopen(os.open(right, flags), "rb", buffering=0) as b,
    ):
        while True:
            x, y = a.read(_CHUNK), b.read(_CHUNK)
            if x != y:
                return "other content"
            if not x:
                return ""
