"""The disks of a container as libvirt's clients name them, and how large they are.

A disk is called by where it is inside (/, /data), as prlctl does (hdd0), or by its image; the root
disk also "root", and by the home.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from pyvz.gateway import failure
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.operations import diskmount
from pyvz.operations.diskmount import DataDisk
from pyvz.storage import base as storage

ROOT = "root"  # the name of a container's disk in statistics


def named(domain: Domain) -> Iterator[tuple[str, DataDisk | None, frozenset[str]]]:
    """Yield each disk: its name of ours, where it is (None: the root disk), all its names."""
    home = domain.env.home
    image = os.fspath(home / storage.ROOT_DISK)
    yield (
        diskmount.ROOT,
        None,
        frozenset({"/", ROOT, diskmount.ROOT, image, os.fspath(home)}),
    )
    for disk in diskmount.disks_of(domain.env, domain.config):
        names = {disk.name, os.fspath(disk.path), disk.entry.mnt}
        yield disk.name, disk, frozenset(names - {""})


def find(domain: Domain, path: str) -> tuple[str, DataDisk | None]:
    """Return the disk that is called PATH: its name, and where it is; raises Failure (8)."""
    for name, disk, names in named(domain):
        if path in names:
            return name, disk
    raise Failure(failure.INVALID_ARGUMENT, f"{domain.env.name} has no disk '{path}'")


def size(domain: Domain, path: str) -> dict[str, int]:
    """Return how large a disk is, and how much of it is in use; raises Failure (8)."""
    _, disk = find(domain, path)
    home, name = (disk.home, disk.disk) if disk else (domain.env.home, storage.ROOT_DISK)
    driver = storage.find(domain.env.home)
    if driver.capabilities(domain.env.home).disks:
        many = storage.many_disks(driver, domain.env.home)
        usage, capacity = many.usage(home, disk=name), many.size(home, disk=name)
    else:
        usage = driver.usage(home)
        capacity = usage.total
    return {"allocation": usage.used, "capacity": capacity, "physical": usage.used}
