"""Mount options as administrators write them ("noatime,nosuid,commit=30"), as values.

What belongs to a mount (mount_setattr(2)) is told from what belongs to its file system.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from pyvz.linux import syscall

_NODIRATIME: Final = 0x80  # linux/mount.h
_STRICTATIME: Final = 0x20
_ATIME: Final = 0x70  # the bits that say which access times are kept: one of its values
_SET: Final = {
    "ro": syscall.MOUNT_ATTR_RDONLY,
    "nosuid": syscall.MOUNT_ATTR_NOSUID,
    "nodev": syscall.MOUNT_ATTR_NODEV,
    "noexec": syscall.MOUNT_ATTR_NOEXEC,
    "noatime": syscall.MOUNT_ATTR_NOATIME,
    "strictatime": _STRICTATIME,
    "nodiratime": _NODIRATIME,
    "nosymfollow": syscall.MOUNT_ATTR_NOSYMFOLLOW,
}
# What is so anyway, or is for programs that read fstab; device files stay forbidden.
_NOTHING: Final = frozenset(
    ("", "rw", "suid", "dev", "exec", "atime", "relatime", "diratime", "defaults", "auto", "noauto")
)


class MountWords(NamedTuple):
    """attributes: MOUNT_ATTR_* bits.  rest: options of the file system."""

    attributes: int = 0
    rest: tuple[str, ...] = ()


def parse(words: Iterable[str]) -> MountWords:
    """Return what the options mean; the later of two that contradict each other counts."""
    attributes, rest = 0, []
    for word in (each.strip() for each in words):
        if word in _SET:
            bits = _SET[word]
            attributes = (attributes & ~_ATIME if bits & _ATIME else attributes) | bits
        elif word not in _NOTHING:
            rest.append(word)
    return MountWords(attributes, tuple(rest))


def apply(target: str, attributes: int) -> None:
    """Add the attributes to those of the mount at `target`; raises OSError."""
    if not attributes:
        return
    clear = _ATIME if attributes & _ATIME else 0
    attr = syscall.MountAttr(set=attributes, clear=clear)
    syscall.mount_setattr(syscall.AT_FDCWD, target, attr, 0)
