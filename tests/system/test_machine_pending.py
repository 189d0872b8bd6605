"""Hardware that comes with the next start: until then every saved state is of the old one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img")


class Machine:
    """A machine without a guest."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.prlctl("create", "vm1", "--vmtype", "vm")
        self.set("--memsize", "64", "--cpus", "1")
        self.prlctl("start", "vm1")

    def prlctl(self, *words: str, code: int = 0) -> str:
        return self.world.run("prlctl", *words, code=code)

    def set(self, *words: str, code: int = 0) -> str:
        return self.prlctl("set", "vm1", *words, code=code)

    def words(self) -> str:
        """QEMU's command line."""
        path = next((self.world.root / "run/pyvz/vm").glob("*/process.json"))
        pid = json.loads(path.read_text())["pid"]
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_what_comes_with_the_next_start(world: World) -> None:
    made = Machine(world)
    made.set("--videosize", "32")
    made.set("--device-set", "hdd0", "--iface", "virtio")
    made.set("--device-add", "usb")
    made.prlctl("suspend", "vm1")
    assert "look for the disks" in made.set("--device-del", "hdd0", code=255)
    assert "look for the disks" in made.set("--device-add", "net", "--type", "routed", code=255)
    made.set("--device-add", "sound")
    made.prlctl("resume", "vm1")
    old = ('"vgamem_mb":16', '"driver":"scsi-hd"')
    new = ('"vgamem_mb":32', '"driver":"virtio-blk-pci"', "qemu-xhci", "intel-hda")
    assert all(word in made.words() for word in old)
    assert not any(word in made.words() for word in new)
    said = made.prlctl("snapshot", "vm1")
    guid = re.search(r"{.*}", said)[0]  # type: ignore[index]
    made.set("--videosize", "64")
    made.prlctl("suspend", "vm1")
    made.prlctl("resume", "vm1")
    made.prlctl("snapshot-switch", "vm1", "--id", guid)
    assert all(word in made.words() for word in old)
    made.prlctl("stop", "vm1", "--kill")
    made.prlctl("start", "vm1")
    assert all(word in made.words() for word in new)
    made.set("--videosize", "16")
    made.set("--videosize", "32")  # as it was: nothing waits any more
    made.prlctl("suspend", "vm1")
    assert '"settings": []' in next(world.root.glob("vz/vmprivate/*/dump/Dump.json")).read_text()
    made.prlctl("resume", "vm1")
    disk_that_waits(made)


def disk_that_waits(made: Machine) -> None:
    """It is in no snapshot, and may be given up again."""
    made.set("--device-add", "hdd", "--size", "16M", "--iface", "sata")
    assert "next start" in made.prlctl("snapshot", "vm1", code=255)
    assert "next start" in made.prlctl("backup", "vm1", code=255)
    made.prlctl("suspend", "vm1")
    made.prlctl("resume", "vm1")
    assert "harddisk1.hdd" not in made.words()
    made.set("--device-del", "hdd1", "--destroy-image")
    made.prlctl("snapshot", "vm1")
