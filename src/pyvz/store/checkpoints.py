"""Checkpoints.json: moments of a virtual machine since which the changes of its disks are known.

    {"checkpoints": [{"name": "monday", "created": 1700000000, "disks": ["hdd0"],
                      "description": "", "about": "<domain..."}, ...]}          oldest first

Each disk has a dirty bitmap of that name in its image, from that moment on.  Nobody goes back to a
checkpoint, so they are a line: the parent of each is the one before it.  The file may come from
anywhere with a machine's home: its size is bounded, and what it says is checked.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyvz.errors import AlreadyExists, BadValue, CheckpointNotFound, StorageError
from pyvz.linux import file

NAME: Final = "Checkpoints.json"
RESERVED: Final = "pyvz-"  # how bitmaps of our own begin
_LIMIT: Final = 8 << 20  # bytes
_MOST: Final = 256  # each bitmap costs every write a little
_LONGEST: Final = 200  # characters of a name; QEMU takes 1023 bytes
_LONGEST_TEXT: Final = 256 << 10
_DISK: Final = re.compile(r"hdd\d{1,2}")


class Checkpoint(NamedTuple):
    """One checkpoint.  created: seconds since the epoch; disks: those with a bitmap of its name.

    about: what the machine was then, in the words of who asked for it.
    """

    name: str
    created: int
    disks: tuple[str, ...]
    description: str = ""
    about: str = ""


class Checkpoints(NamedTuple):
    """All checkpoints of a machine, oldest first."""

    items: tuple[Checkpoint, ...] = ()

    def get(self, name: str) -> Checkpoint:
        """Return a checkpoint; raises CheckpointNotFound."""
        return self.items[self._place(name)]

    def has(self, name: str) -> bool:
        """Whether there is one of that name."""
        return any(item.name == name for item in self.items)

    def before(self, name: str) -> Checkpoint | None:
        """Return the parent of one; raises CheckpointNotFound."""
        place = self._place(name)
        return self.items[place - 1] if place else None

    def after(self, name: str) -> tuple[Checkpoint, ...]:
        """Return those that came after one; raises CheckpointNotFound."""
        return self.items[self._place(name) + 1 :]

    def added(self, item: Checkpoint) -> Checkpoints:
        """Return them with a new one; raises AlreadyExists, BadValue."""
        check_name(item.name)
        if self.has(item.name):
            raise AlreadyExists(f"There is a checkpoint '{item.name}' already")
        if len(self.items) >= _MOST:
            raise BadValue(f"A virtual machine cannot have more than {_MOST} checkpoints")
        if max(len(item.description), len(item.about)) > _LONGEST_TEXT:
            raise BadValue("The description of the checkpoint is too long")
        return Checkpoints((*self.items, item))

    def changed(self, item: Checkpoint) -> Checkpoints:
        """Return them with ITEM in place of the one of its name; raises CheckpointNotFound."""
        place = self._place(item.name)
        return Checkpoints((*self.items[:place], item, *self.items[place + 1 :]))

    def without(self, names: frozenset[str]) -> Checkpoints:
        """Return them without some."""
        return Checkpoints(tuple(item for item in self.items if item.name not in names))

    def _place(self, name: str) -> int:
        for place, item in enumerate(self.items):
            if item.name == name:
                return place
        raise CheckpointNotFound(f"There is no checkpoint '{name}'")


def check_name(name: str) -> None:
    """Raise BadValue when a checkpoint, and so a bitmap, cannot be called NAME."""
    if not name or len(name) > _LONGEST or not name.isprintable() or "/" in name:
        raise BadValue(
            f"'{name[:_LONGEST]}' cannot be the name of a checkpoint:"
            f" 1 to {_LONGEST} printable characters without /"
        )
    if name.startswith(RESERVED):
        raise BadValue(f"Names that begin with {RESERVED} are those of our own backups")


def load(home: Path) -> Checkpoints:
    """Return what the home's file tells, nothing where there is none; raises StorageError."""
    try:
        text = file.read_text_limited(home / NAME, _LIMIT)
    except FileNotFoundError:
        return Checkpoints()
    try:
        return Checkpoints(tuple(map(_read, json.loads(text)["checkpoints"])))
    except (ValueError, KeyError, TypeError, AttributeError, BadValue) as error:
        raise StorageError(
            f"{home / NAME} cannot be understood", details=f"{type(error).__name__}: {error}"
        ) from error


def save(home: Path, checkpoints: Checkpoints) -> None:
    """Write the file; without checkpoints there is none."""
    if not checkpoints.items:
        (home / NAME).unlink(missing_ok=True)
        return
    rows = [item._asdict() for item in checkpoints.items]
    file.write_atomic(home / NAME, json.dumps({"checkpoints": rows}) + "\n", 0o600)


def _read(row: dict[str, Any]) -> Checkpoint:
    disks = tuple(str(disk) for disk in row["disks"])
    item = Checkpoint(
        str(row["name"]), int(row["created"]), disks, str(row["description"]), str(row["about"])
    )
    check_name(item.name)
    if not all(map(_DISK.fullmatch, disks)):
        raise BadValue(f"'{item.name}' names disks that cannot be")
    return item
