"""The image files of CRIU, as far as we read and mend them.

    <u32 magic> <u32 magic of the kind> (<u32 length> <protobuf message>)*

Source: CRIU, criu/include/magic.h, criu/image.c.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from pyvz.container import criu_pb2
from pyvz.errors import RestoreError
from pyvz.linux.file import write_atomic

_COMMON, _SERVICE = 0x54564319, 0x55105940
_FILES, _STATS, _USERNS, _MOUNTS = 0x56303138, 0x57093306, 0x55474906, 0x55563928
_PROGRAMS = 0x57492820  # what CRIU calls mm
_REMAPS, _LINKED = 0x59133954, 0  # REMAP_FPATH; enum remap_type
_CGROUP2 = 23  # enum fstype
_HEAD = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_LIMIT = 1 << 30  # bytes of one image that is held in memory; files.img has some 100 per open file


class _Image(NamedTuple):
    """An image that was read: what stands before its messages, and those."""

    path: Path
    head: bytes
    messages: list[bytes]

    def write(self, messages: Sequence[bytes]) -> None:
        """Give it other messages, if they are others."""
        if messages != self.messages:
            body = (_LENGTH.pack(len(each)) + each for each in messages)
            write_atomic(self.path, self.head + b"".join(body), 0o644)


class Stats(NamedTuple):
    """What CRIU tells of a dump: microseconds that the tasks stood still, pages of 4 KiB."""

    freezing: int
    frozen: int
    written: int
    skipped: int
    lazy: int


def mend_timers(directory: Path) -> int:
    """Let periodic timers that fired between freeze and dump fire again; returns how many.

    Such a timerfd is saved with nothing left until it fires, which timerfd_settime(2) takes for
    "disarm" (CRIU issue 3162).  To be called before every restore; idempotent.
    """
    files = _read(directory / "files.img", _FILES)
    made = [_going(message) for message in files.messages]
    files.write(made)
    return sum(after != before for after, before in zip(made, files.messages, strict=True))


def _going(message: bytes) -> bytes:
    entry = criu_pb2.file_entry.FromString(message)
    timer = entry.tfd
    stopped = entry.HasField("tfd") and not (timer.vsec or timer.vnsec)
    if not (stopped and (timer.isec or timer.insec)):
        return message
    timer.vnsec = 1
    return entry.SerializeToString()


def open_executables(directory: Path) -> int:
    """Have programs whose file somebody held by O_PATH get it to execute; idempotent.

    CRIU takes every use of a file for one description of it (fd_id_cache_lookup() in
    criu/file-ids.c), and the kernel takes none of O_PATH for a program's file (PR_SET_MM_MAP:
    EBADF).  systemd since 254 holds systemd-executor so, which (sd-pam) of a user's manager runs.
    Returns how many files got a description of their own.
    """
    files = _read(directory / "files.img", _FILES)
    entries = [criu_pb2.file_entry.FromString(message) for message in files.messages]
    held = {each.id: each for each in entries if each.reg.flags & os.O_PATH}
    if not held:
        return 0
    free = max(each.id for each in entries) + 1
    opened: dict[int, int] = {}
    changed = []
    for path in directory.glob("mm-*.img"):
        image = _read(path, _PROGRAMS)
        [message] = image.messages
        program = criu_pb2.mm_entry.FromString(message)
        if program.exe_file_id in held:
            number = opened.setdefault(program.exe_file_id, free + len(opened))
            program.exe_file_id = number
            changed.append((image, program.SerializeToString()))
    made = list(files.messages)
    for old, number in opened.items():
        entry = held[old]
        entry.id = entry.reg.id = number
        entry.reg.flags = os.O_RDONLY
        made.append(entry.SerializeToString())
    files.write(made)  # before those that name them: who is killed here leaves whole images
    for image, message in changed:
        image.write([message])
    return len(opened)


def forget_deleted(directory: Path) -> None:
    """Have external mounts of files that are gone taken for ordinary ones: others stand for them.

    CRIU would make the file again before it binds it, where the other one is.
    """
    for path in directory.glob("mountpoints-*.img"):
        image, made = _read(path, _MOUNTS), []
        for message in image.messages:
            entry = criu_pb2.mnt_entry.FromString(message)
            if entry.deleted and entry.ext_key:
                entry.deleted = False
            made.append(entry.SerializeToString())
        image.write(made)


def root_cgroup_binds(directory: Path) -> None:
    """Have parts of the cgroup tree that are mounted on themselves found again; idempotent.

    In a cgroup namespace CRIU takes every cgroup mount for one of the whole tree (cgroup_parse() in
    criu/filesystems.c), and then cannot restore such a part.  systemd since 254 mounts
    memory.pressure of a service so, writable in a tree that is read-only.
    """
    for path in directory.glob("mountpoints-*.img"):
        image = _read(path, _MOUNTS)
        entries = [criu_pb2.mnt_entry.FromString(each) for each in image.messages]
        known = {entry.mnt_id: entry for entry in entries}
        for entry in entries:
            top = _top_of(entry, known)
            if entry.fstype == _CGROUP2 and top is not entry:
                inside = entry.mountpoint.removeprefix(top.mountpoint)
                entry.root = top.root.rstrip("/") + inside
        image.write([entry.SerializeToString() for entry in entries])


def _top_of(
    entry: criu_pb2.mnt_entry, known: Mapping[int, criu_pb2.mnt_entry]
) -> criu_pb2.mnt_entry:
    """Return the topmost of the cgroup mounts on which an entry is mounted; itself if on none."""
    top = entry
    for _ in known:
        above = known.get(top.parent_mnt_id)
        if above is None or above.fstype != _CGROUP2:
            return top
        top = above
    return entry  # in circles: no work of CRIU's


def map_ids(directory: Path, first: int, count: int) -> None:
    """Have the container's ids mapped to another range of the node's: on a node of its own.

    CRIU keeps everything else as the container sees it.  Raises RestoreError for a map that is not
    one of ours.
    """
    for path in directory.glob("userns-*.img"):
        image, made = _read(path, _USERNS), []
        for message in image.messages:
            entry = criu_pb2.userns_entry.FromString(message)
            for extent in (*entry.uid_map, *entry.gid_map):
                if extent.first != 0 or extent.count != count:
                    raise RestoreError(f"{path} maps other ids than those of a container")
                extent.lower_first = first
            made.append(entry.SerializeToString())
        image.write(made)


def has_links(directory: Path) -> bool:
    """Whether CRIU has linked files inside to new names, which a restore needs to find there.

    They are such as were removed under the name by which they are open, and have another.
    """
    path = directory / "remap-fpath.img"
    if not path.exists():
        return False
    messages = _read(path, _REMAPS).messages
    found = [criu_pb2.remap_file_path_entry.FromString(each) for each in messages]
    return any(each.remap_type == _LINKED for each in found)


def dump_stats(directory: Path) -> Stats | None:
    """Return what the dump into DIRECTORY took; None when CRIU has left no word."""
    path = directory / "stats-dump"
    try:
        message = next(_messages(path.read_bytes(), _STATS, path, service=True))
        found = criu_pb2.stats_entry.FromString(message).dump
    except (OSError, StopIteration, RestoreError, DecodeError):
        return None
    return Stats(
        freezing=found.freezing_time,
        frozen=found.frozen_time,
        written=found.pages_written,
        skipped=found.pages_skipped_parent,
        lazy=found.pages_lazy,
    )


def _read(path: Path, kind: int) -> _Image:
    """Read an image; raises RestoreError when it is not one of this kind."""
    data = path.read_bytes()
    return _Image(path, data[: _HEAD.size], list(_messages(data, kind, path)))


def _messages(data: bytes, kind: int, path: Path, *, service: bool = False) -> Iterator[bytes]:
    """Yield the messages of an image; RestoreError when it is not one."""
    expected = (_SERVICE if service else _COMMON, kind)
    if len(data) > _LIMIT or len(data) < _HEAD.size or _HEAD.unpack_from(data) != expected:
        raise RestoreError(f"{path} is no image of CRIU")
    at = _HEAD.size
    while at < len(data):
        end = at + _LENGTH.size
        if end > len(data):
            raise RestoreError(f"{path} is cut short")
        (length,) = _LENGTH.unpack_from(data, at)
        if end + length > len(data):
            raise RestoreError(f"{path} is cut short")
        yield data[end : end + length]
        at = end + length
