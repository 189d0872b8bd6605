"""The disks of a container as `prlctl list -i` shows them among the hardware (PrlDev.cpp)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pyvz.errors import VZError
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.operations import diskmount
from pyvz.storage import base as storage

_MIB = 1 << 20


def hardware(env: Environment, config: Config) -> dict[str, object]:
    """Return hdd0, hdd1, ... as they are configured; what cannot be read is left out."""
    found: dict[str, object] = {}
    with contextlib.suppress(VZError, OSError):
        found[diskmount.ROOT] = _root(env, config)
    with contextlib.suppress(VZError, OSError):
        driver = storage.many_disks(storage.find(env.home), env.home)
        for disk in diskmount.disks_of(env, config):
            entry = disk.entry
            size = _size_of(driver, disk.home, disk.disk) or f"{entry.size // 1024}Mb"
            shown = {"device": entry.device} if entry.device else {"image": os.fspath(disk.path)}
            found[disk.name] = _line(
                disk.name, shown, size, entry.mnt, enabled=entry.enabled
            ) | _compacts(entry.autocompact)
    return found


def _root(env: Environment, config: Config) -> dict[str, object]:
    """Return the root disk: its image, or the directory where it is a tree."""
    driver = storage.find(env.home)
    space = config.disk.space
    if driver.capabilities(env.home).disks:
        many = storage.many_disks(driver, env.home)
        size = _size_of(many, env.home, storage.ROOT_DISK)
        return _line(
            diskmount.ROOT, {"image": os.fspath(many.place(env.home))}, size, "/", enabled=True
        ) | _compacts(config.disk.autocompact)
    quota = driver.capabilities(env.home).quota and space is not None
    size = f"{space.limit // 1024}Mb" if quota and space is not None else ""
    return _line(diskmount.ROOT, {"real": os.fspath(env.home)}, size, "/", enabled=True)


def _line(
    name: str, shown: dict[str, str], size: str, mnt: str, *, enabled: bool
) -> dict[str, object]:
    line: dict[str, object] = {"enabled": enabled, "port": f"scsi:{name[3:]}", **shown}
    if "image" in shown:
        line["type"] = "expanded"
    if size:
        line["size"] = size
    if mnt:
        line["mnt"] = mnt
    state = "connected" if enabled else "disconnected"
    return line | {"state": state, "subtype": "virtio-scsi"}


def _compacts(value: bool | None) -> dict[str, object]:  # noqa: FBT001  a value
    return {} if value is not False else {"autocompact": "off"}


def _size_of(driver: storage.ManyDisks, home: Path, disk: str) -> str:
    """Return the size of a disk as its image has it; empty when there is none."""
    with contextlib.suppress(VZError, OSError):
        return f"{driver.size(home, disk=disk) // _MIB}Mb"
    return ""
