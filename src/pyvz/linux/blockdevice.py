"""Block devices by number, as the I/O limits of cgroups want them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pyvz.linux.mount import holding_mount

SYS_BLOCK = "/sys/dev/block"


def whole_disk(device: tuple[int, int]) -> tuple[int, int]:
    """Return the disk that a partition lies on; other devices are returned as they are.

    The kernel refuses I/O limits for partitions (block/blk-cgroup.c: blkg_conf_open_bdev).
    """
    link = f"{SYS_BLOCK}/{device[0]}:{device[1]}"
    if not os.path.exists(f"{link}/partition"):
        return device
    with open(f"{os.path.realpath(link)}/../dev", encoding="ascii") as file:
        return _numbers(file.read())


def disks_of(path: str | Path) -> list[tuple[int, int]]:
    """Return the whole disk that the file system of PATH lies on, as a list of none or one.

    A file system with an anonymous device number (btrfs, overlay) is asked for its source;
    one without a block device (tmpfs, NFS) has no disk.
    """
    number = os.stat(path).st_dev
    device = (os.major(number), os.minor(number))
    if device[0] == 0:
        with contextlib.suppress(OSError):
            source = os.stat(holding_mount(path).source)
            device = (os.major(source.st_rdev), os.minor(source.st_rdev))
    if device[0] == 0 or not os.path.exists(f"{SYS_BLOCK}/{device[0]}:{device[1]}"):
        return []
    return [whole_disk(device)]


def _numbers(text: str) -> tuple[int, int]:
    major, _, minor = text.strip().partition(":")
    return int(major), int(minor)
