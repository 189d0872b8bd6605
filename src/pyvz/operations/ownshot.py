"""Snapshots inside disks (qcow2) that we take for ourselves, and of which nobody is told: to read a
disk as it was at one moment, for a backup or for another node.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from pyvz.errors import NotFound
from pyvz.storage import base as storage


def forget(directory: Path, guids: Collection[str]) -> None:
    """Remove those from every disk of a home, also after a death; none there is fine."""
    driver = storage.find(directory)
    able = driver.capabilities(directory)
    if able.disks and not able.image:
        for name in storage.many_disks(driver, directory).disks(directory):
            forget_one(driver, directory, name, guids)


def forget_one(
    driver: storage.StorageDriver, directory: Path, disk: str, guids: Collection[str]
) -> None:
    """Remove those from one disk."""
    known = storage.many_disks(driver, directory).snapshots(directory, disk=disk)
    for guid in set(guids) & set(known):
        with suppress(NotFound):
            driver.delete_snapshot(directory, guid, disk=disk)
