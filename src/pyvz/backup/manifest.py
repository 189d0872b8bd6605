"""The manifest of a backup: what it is of, and the names of the chunks that lead to its data.

One JSON file per backup; that it is there means that the backup is whole.  Every backup is
complete in itself: "incremental" says how it was made and to which chain it belongs, not that
others are needed to restore it.  Everything read from a file is checked before it is believed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple, Self

from pyvz.errors import BackupDamaged, BadValue
from pyvz.model.environment import canonical_uuid

FORMAT: Final = 1
FULL: Final = 1  # number of the first backup of a chain; the next is 2, "as in acronis"
IMAGE: Final = "image"
TREE: Final = "tree"
HOLE: Final = ""  # page of an image that has no data
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_ID: Final = re.compile(r"\{?([0-9a-f-]{36})\}?(?:\.([1-9][0-9]{0,8}))?")
_FILE: Final = re.compile(r"(?!\.\.?(/|$))[A-Za-z0-9._-]+(/(?!\.\.?(/|$))[A-Za-z0-9._-]+){0,2}")


class Disk(NamedTuple):
    """A disk of the environment.

    name: of its directory ("root.hdd").  form: IMAGE or TREE.  driver: of the storage it was on.
    size: of the image, or of all files, in bytes.  limit: size of the disk that the restored tree
    has to have (None: none).  pages: names of the chunks that hold an image's index or a tree's
    catalog, in order.
    """

    name: str
    form: str
    driver: str
    size: int
    limit: int | None
    pages: tuple[str, ...]


class File(NamedTuple):
    """A small file of the home that is kept in the manifest itself (ve.conf, action scripts)."""

    path: str
    mode: int
    text: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup.

    chain: UUID of the full backup that it goes back to; number: FULL, then 2, 3, ...
    created: seconds since the epoch.  stored: bytes by which it made the repository larger.
    """

    chain: str
    number: int
    uuid: str
    envid: str
    name: str
    kind: str
    home: str
    host: str
    server: str
    owner: str
    created: float
    description: str
    stored: int
    files: tuple[File, ...]
    disks: tuple[Disk, ...]

    @property
    def id(self) -> str:
        """The backup's own id: that of its chain, with the number when it is incremental."""
        return self.chain if self.number == FULL else f"{self.chain}.{self.number}"

    @property
    def tag(self) -> str:
        """The id as it is shown, with braces."""
        return shown(self.id)

    @property
    def reference(self) -> str:
        """Name of what is kept of this very backup: an id may come again after a removal."""
        return f"{self.id}@{int(self.created * 1_000_000)}"

    def file(self, path: str) -> File | None:
        """Return a small file by its path in the home."""
        return next((each for each in self.files if each.path == path), None)

    def to_json(self) -> str:
        """Return the text of the manifest's file."""
        fields = asdict(self)
        fields["files"] = [each._asdict() for each in self.files]
        fields["disks"] = [each._asdict() for each in self.disks]
        return json.dumps({"format": FORMAT, **fields}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str) -> Self:
        """Return the manifest in TEXT; raises BackupDamaged, naming SOURCE."""
        try:
            return cls(**_checked(json.loads(text)))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BackupDamaged(
                f"{source} is no manifest of a backup", details=f"{type(error).__name__}: {error}"
            ) from error


def _checked(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a manifest; ValueError, TypeError or KeyError for what cannot be."""
    fields = dict(raw)
    if fields.pop("format") != FORMAT:
        raise ValueError("a format of another version")
    for name in ("chain", "uuid"):
        if canonical_uuid(str(fields[name])) != fields[name]:
            raise ValueError(f"{name} is no UUID")
    kinds: dict[str, Any] = {"number": int, "stored": int, "created": (int, float)}
    for name, value in fields.items():
        if name not in {"files", "disks"} and not isinstance(value, kinds.get(name, str)):
            raise TypeError(name)
    fields["files"] = tuple(_file(**each) for each in _list(fields["files"]))
    fields["disks"] = tuple(_disk(**each) for each in _list(fields["disks"]))
    return fields


def _list(value: object) -> list[dict[str, object]]:
    if not isinstance(value, list):
        raise TypeError("a list is expected")
    return value


def _file(path: object, mode: object, text: object) -> File:
    if not isinstance(path, str) or not _FILE.fullmatch(path):
        raise ValueError("path of a file")
    if not isinstance(mode, int) or not isinstance(text, str):
        raise TypeError("file")
    return File(path, mode & 0o777, text)


def _disk(**raw: object) -> Disk:
    disk = Disk(**raw)  # type: ignore[arg-type]  # checked below
    if not _FILE.fullmatch(disk.name) or "/" in disk.name or disk.form not in {IMAGE, TREE}:
        raise ValueError("disk")
    for number in (disk.size, disk.limit or 0):
        if not isinstance(number, int) or not 0 <= number < 1 << 60:
            raise ValueError("size of a disk")
    pages = tuple(disk.pages)
    if not all(page == HOLE or _HASH.fullmatch(page) for page in pages):
        raise ValueError("pages of a disk")
    return disk._replace(driver=str(disk.driver), pages=pages)


def is_file_name(path: str) -> bool:
    """Whether a small file of that path in the home can be in a manifest."""
    return _FILE.fullmatch(path) is not None


def parse_id(text: str) -> str:
    """Return a backup's id without braces; raises BadValue."""
    found = _ID.fullmatch(text.strip().lower())
    if found is None or canonical_uuid(found[1]) is None:
        raise BadValue(f"'{text}' is not the id of a backup")
    number = int(found[2] or FULL)
    return found[1] if number == FULL else f"{found[1]}.{number}"


def shown(ident: str) -> str:
    """Return an id as the original shows it: {uuid} or {uuid}.N."""
    chain, dot, number = ident.partition(".")
    return f"{{{chain}}}{dot}{number}"
