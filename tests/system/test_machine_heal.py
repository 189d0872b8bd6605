"""A `set` that died between QEMU and vm.conf: the next verb puts the running machine right."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img")


class Monitor:
    """QEMU's monitor, in the place of a vzd that is dead."""

    def __init__(self, world: World) -> None:
        world.kill_vzd()
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(120)
        path = next((world.root / "run/pyvz/vm").glob("*/monitor.sock"))
        self._sock.connect(os.fspath(path))
        self._lines = self._sock.makefile("rb")
        self._lines.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        words = {"execute": command, "arguments": arguments}
        self._sock.sendall(json.dumps(words).encode() + b"\n")
        while "event" in (answer := json.loads(self._lines.readline())):
            pass
        assert "return" in answer, (command, answer)
        return answer["return"]

    def devices(self) -> set[str]:
        return {each["name"] for each in self("qom-list", path="/machine/peripheral")}

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._sock.close()


def test_a_set_that_died(world: World) -> None:
    world.run("prlctl", "create", "vm1", "--vmtype", "vm")
    world.run("prlctl", "set", "vm1", "--memsize", "64", "--cpus", "1")
    world.run("prlctl", "start", "vm1")
    world.run("prlctl", "set", "vm1", "--device-add", "hdd", "--size", "16M")
    home = next((world.root / "vz/vmprivate").iterdir())
    with Monitor(world) as qemu:
        break_off(qemu)
    (home / "harddisk2.hdd").touch()
    unfinished(world, home)
    world.run("prlctl", "set", "vm1", "--description", "whole")
    assert not (home / "harddisk2.hdd").exists()
    with Monitor(world) as qemu:
        assert "device-hdd1" in qemu.devices()
        assert "device-hdd2" not in qemu.devices()
        qemu("device_add", driver="virtio-net-pci", bus="port0", id="device-net0")
    assert "still has net0" in world.run("prlctl", "suspend", "vm1", code=255)
    with Monitor(world) as qemu:
        qemu("device_del", id="device-net0")
        if "device-net0" in qemu.devices():  # nobody in the guest lets it go
            qemu("system_reset")
        deadline = time.monotonic() + 60
        while "device-net0" in qemu.devices():
            assert time.monotonic() < deadline
    world.run("prlctl", "suspend", "vm1")  # with both processors
    world.run("prlctl", "resume", "vm1")
    world.run("prlctl", "set", "vm1", "--device-del", "hdd1", "--destroy-image")
    world.run("prlctl", "delete", "vm1", "--force")


def break_off(qemu: Monitor) -> None:
    """A disk that is saved is out, another one and a processor are in that are not."""
    qemu("device_del", id="device-hdd1")
    deadline = time.monotonic() + 60
    while "device-hdd1" in qemu.devices():
        assert time.monotonic() < deadline
    qemu("blockdev-add", driver="null-co", size=1 << 20, **{"node-name": "hdd2"})
    qemu("device_add", driver="scsi-hd", bus="scsi0.0", drive="hdd2", id="device-hdd2")
    free = [each for each in qemu("query-hotpluggable-cpus") if "qom-path" not in each]
    place = min(free, key=lambda each: sorted(each["props"].items()))
    qemu("device_add", driver=place["type"], id="cpu1", **place["props"])


def unfinished(world: World, home: Path) -> None:
    """Leave the journal of a `set` that was to make a second disk."""
    data = {"home": os.fspath(home), "made": [os.fspath(home / "harddisk2.hdd")], "doomed": []}
    data |= {"name": "vm1", "envid": home.name, "kind": "vm"}
    line = {"verb": "machine-set", "uuid": home.name, "data": data, "pid": 1, "at": 1.0}
    path = world.root / f"var/lib/pyvz/journal/{home.name}.jsonl"
    path.write_text(json.dumps(line) + "\n")
