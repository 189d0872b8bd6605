"""What the keeper must not forget: one small file per container on a tmpfs.

    <state>/<uuid>.json     {"boot_id", "uuid", "pid", "started", ..., "exit": null | {"status"}}

Written when init runs and when it ends, removed when a client has acknowledged the end.  A keeper
that follows a killed one learns from these files whom to adopt and what nobody has heard yet.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pyvz.linux import process


class Record(NamedTuple):
    """One container's init, and all that a session in it needs to know.

    seccomp is shared between records of equal content.  log: the console's log file.
    """

    uuid: str
    pid: int
    started: int
    namespaces: int
    capabilities: int
    seccomp: bytes
    env: dict[str, str]
    log: str | None
    rlimits: Sequence[Sequence[int]] = ()
    merge: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return self._asdict() | {"seccomp": base64.b64encode(self.seccomp).decode()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Back from JSON; KeyError, TypeError or ValueError when it is not one."""
        fields = {name: data[name] for name in cls._fields if name in data}
        return cls(**fields | {"seccomp": base64.b64decode(data["seccomp"])})


class Exit(NamedTuple):
    """The end of an init: status is its wait status, None when nobody could learn it."""

    uuid: str
    pid: int
    started: int
    status: int | None

    def to_event(self) -> dict[str, Any]:
        """As it travels to clients."""
        return {"event": "exit", **self._asdict()}


class Ledger:
    """The directory of those files; the keeper is the only one to use it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._boot = process.boot_id()
        os.makedirs(directory, 0o700, exist_ok=True)

    def living(self, record: Record) -> None:
        """Note that init runs."""
        self._write(record.uuid, record.to_json() | {"exit": None})

    def ended(self, end: Exit) -> None:
        """Note that it ended, until forget()."""
        data = end._asdict() | {"exit": {"status": end.status}}
        self._write(end.uuid, data)

    def forget(self, uuid: str) -> None:
        """The end is known to those it concerns."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(uuid))  # noqa: PTH108  # pathlib is heavy in the keeper

    def load(self) -> Iterator[Record | Exit]:
        """What is noted of this boot; files of another one, or without sense, are removed."""
        for name in sorted(os.listdir(self._directory)):  # noqa: PTH208
            found = self._read(name) if name.endswith(".json") else None
            if found is None:
                with contextlib.suppress(OSError):
                    os.unlink(f"{self._directory}/{name}")  # noqa: PTH108
            else:
                yield found

    def _read(self, name: str) -> Record | Exit | None:
        try:
            with open(f"{self._directory}/{name}", encoding="utf-8") as file:
                data = json.load(file)
            if data["boot_id"] != self._boot:
                return None
            if data["exit"] is None:
                return Record.from_json(data)
            return Exit(data["uuid"], data["pid"], data["started"], data["exit"]["status"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self, uuid: str, data: dict[str, Any]) -> None:
        path = self._path(uuid)
        with open(path + ".new", "w", encoding="utf-8", opener=_private) as file:
            json.dump(data | {"boot_id": self._boot}, file)
        # No fsync: after a crash of the node it is void anyway.
        os.rename(path + ".new", path)  # noqa: PTH104

    def _path(self, uuid: str) -> str:
        return f"{self._directory}/{uuid}.json"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
