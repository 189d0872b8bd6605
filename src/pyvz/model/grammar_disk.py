"""DISK: the disks of a container beside an unchanged root disk (config.md section 3.4).

Entries are joined by ``;``, each is ``k=v`` pairs joined by ``,``; ``image=`` or ``device=`` comes
last, because a path may hold a comma.  A relative image path is below VE_PRIVATE.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from pyvz.errors import BadValue
from pyvz.model.environment import canonical_uuid
from pyvz.model.grammar import KIBIBYTES, Integer, YesNo

_PATH = re.compile(r"[^;\"'\\$`\x00-\x1f]+")
_VALUE = re.compile(r"[^,;\"'\\$`\x00-\x1f]+")


class DiskEntry(NamedTuple):
    """One disk; uuid canonical without braces, size in KiB (0: not said)."""

    uuid: str = ""
    size: int = 0
    enabled: bool = True
    mnt: str = ""  # mount point in the container; "/" is the root disk
    mnt_opts: str = ""
    autocompact: bool | None = None
    storage_url: str = ""
    image: str = ""
    device: str = ""
    other: tuple[tuple[str, str], ...] = ()


class Disks:
    """DISK."""

    def parse(self, text: str) -> tuple[DiskEntry, ...]:
        """Return the disks; BadValue names the entry."""
        return tuple(_parse_one(part.strip()) for part in text.split(";") if part.strip())

    def format(self, value: tuple[DiskEntry, ...]) -> str:
        """Return the stored text."""
        return ";".join(map(_format_one, value))


def change_disk(disk: DiskEntry, key: str, text: str) -> DiskEntry:
    """Return DISK with what the option for KEY says (``size`` in KiB or with a suffix)."""
    return _parse_pair(disk, key, text)


def _parse_one(text: str) -> DiskEntry:
    head, path_key, path = text, "", ""
    for key in ("image", "device"):
        match = re.search(rf"(?:^|,){key}=(.*)", text, re.DOTALL)
        if match:
            head, path_key, path = text[: match.start()], key, match[1]
            break
    disk = DiskEntry()
    for pair in filter(None, head.split(",")):
        key, equals, value = pair.strip().partition("=")
        if not equals:
            raise BadValue(f"'{pair}' in '{text}' is not of the form KEY=VALUE")
        disk = _parse_pair(disk, key, value)
    return _parse_pair(disk, path_key, path) if path_key else disk


def _parse_pair(disk: DiskEntry, key: str, text: str) -> DiskEntry:
    if reader := _READERS.get(key):
        changed: dict[str, Any] = {key: reader(text)}
        return disk._replace(**changed)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
        raise BadValue(f"'{key}' is not a property of a disk")
    return disk._replace(other=(*disk.other, (key, _plain(text))))


def _uuid(text: str) -> str:
    uuid = canonical_uuid(text)
    if uuid is None:
        raise BadValue(f"'{text}' is not the UUID of a disk")
    return uuid


def _size(text: str) -> int:
    return Integer(1, 2**43).parse(str(KIBIBYTES.amount.parse(text)))


def _path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise BadValue(f"'{text}' is not the path of a disk")
    return text


def _plain(text: str) -> str:
    if text and not _VALUE.fullmatch(text):
        raise BadValue(f"'{text}' cannot stand in DISK")
    return text


_READERS: dict[str, Callable[[str], Any]] = {
    "uuid": _uuid,
    "size": _size,
    "enabled": YesNo().parse,
    "autocompact": YesNo().parse,
    "image": _path,
    "device": _path,
    "mnt": _plain,
    "mnt_opts": _plain,
    "storage_url": _plain,
}


def _format_one(disk: DiskEntry) -> str:
    auto = "" if disk.autocompact is None else "yes" if disk.autocompact else "no"
    pairs = [
        ("uuid", f"{{{disk.uuid}}}" if disk.uuid else ""),
        ("size", str(disk.size) if disk.size else ""),
        ("enabled", "yes" if disk.enabled else "no"),
        ("mnt", disk.mnt),
        ("mnt_opts", disk.mnt_opts),
        ("autocompact", auto),
        ("storage_url", disk.storage_url),
    ]
    pairs = [(key, value) for key, value in pairs if value] + list(disk.other)
    pairs += [(k, v) for k, v in (("device", disk.device), ("image", disk.image)) if v][:1]
    return ",".join(f"{key}={value}" for key, value in pairs)
