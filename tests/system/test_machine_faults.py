"""What goes wrong with virtual machines: full disks, crashes, images in use, a vzd that dies."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from machineguest import Guest, guest
from places import umount
from realnode import World, world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "guest", "tiny_iso", "world"]
pytestmark = [
    pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img"),
    pytest.mark.long,
    pytest.mark.timeout(1800),
]


@pytest.fixture
def small_place(world: World) -> Iterator[Path]:
    """A file system of 12 MiB."""
    place = world.root / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", place], check=True)
    yield place
    world.run("prlctl", "stop", "vm1", "--kill")  # whatever happened: it holds the image open
    umount(place)


def events(guest: Guest) -> str:
    return (guest.world.root / "var/log/pyvz/events.log").read_text().replace(" ", "")


def heard(guest: Guest, wanted: str) -> None:
    deadline = time.monotonic() + 400
    while wanted not in events(guest):
        assert time.monotonic() < deadline, wanted
        time.sleep(0.2)


def test_a_disk_that_is_full(guest: Guest, small_place: Path) -> None:
    """The machine waits until there is space, and loses nothing."""
    disk = small_place / "disk.hdd"
    # On a bus of its own: the guest names SCSI disks in the order in which they answer.
    words = ("--device-add", "hdd", "--image", os.fspath(disk), "--size", "1G", "--iface", "virtio")
    guest.prlctl("set", "vm1", *words)
    guest.start()
    guest.inside("dd if=/dev/urandom of=/tmp/data bs=1M count=24 2>/dev/null")
    wanted = guest.inside("md5sum </tmp/data")
    write = "dd if=/tmp/data of=/dev/vda bs=1M conv=fsync && rm /tmp/data && echo done >/tmp/done"
    guest.inside(f"({write}) >/dev/null 2>&1 &")
    heard(guest, '"reason":"no-space"')
    assert guest.status == "paused"
    subprocess.run(["mount", "-o", "remount,size=500m", small_place], check=True)
    guest.await_status("running")
    guest.until("cat /tmp/done 2>/dev/null; true", "done")
    guest.inside("echo 3 >/proc/sys/vm/drop_caches")
    assert guest.inside("dd if=/dev/vda bs=1M count=24 2>/dev/null | md5sum") == wanted


def test_a_guest_that_crashes(guest: Guest) -> None:
    """It is started anew, or stands still for someone to look at it."""
    guest.start()
    guest.inside("touch /run/before; (sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
    heard(guest, '"name":"vm-crash"')
    guest.wait()
    guest.until("ls /run/before 2>/dev/null || echo gone", "gone")
    guest.prlctl("set", "vm1", "--on-crash", "pause")
    guest.inside("(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
    guest.await_status("paused")
    assert events(guest).count('"name":"vm-crash"') == 2
    guest.kill_vzd()
    assert guest.status == "paused"
    guest.prlctl("reset", "vm1")
    guest.wait()


def test_images_of_others(world: World, tmp_path: Path) -> None:
    for name in ("one", "two"):
        world.run("prlctl", "create", name, "--vmtype", "vm")
    image = next((world.root / "vz/vmprivate").glob("*/harddisk.hdd"))
    owner = next(
        name
        for name in ("one", "two")
        if image.parent.name in world.run("prlctl", "list", "-i", name)
    )
    other = {"one": "two", "two": "one"}[owner]
    world.run("prlctl", "set", other, "--device-add", "hdd", "--image", os.fspath(image))
    world.run("prlctl", "start", owner)
    assert "in use" in world.run("prlctl", "start", other, code=255)
    assert "stopped" in world.run("prlctl", "status", other)
    world.run("prlctl", "stop", owner, "--kill")
    world.run("prlctl", "start", other)
    world.run("prlctl", "stop", other, "--kill")


VERBS: tuple[tuple[str, ...], ...] = (
    ("start", "vm"),
    ("pause", "vm"),
    ("resume", "vm"),
    ("suspend", "vm"),
    ("resume", "vm"),
    ("snapshot", "vm"),
    ("snapshot-switch", "vm"),
    ("stop", "vm", "--kill"),
    ("set", "vm", "--device-add", "hdd", "--size", "64M"),
    ("clone", "vm", "--name", "copy"),
)


class Sweep:
    """A machine with an empty disk, a vzd that is killed, and what must be true afterwards."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.run("prlctl", "create", "vm", "--vmtype", "vm")
        world.run("prlctl", "set", "vm", "--memsize", "64")

    def status(self, name: str = "vm") -> str:
        return self.world.run("prlctl", "status", name).split()[-1]

    def ready(self, verb: str) -> None:
        """Bring the machine into the state that VERB needs."""
        run = self.world.run
        now = self.status()
        if verb in {"start", "set", "clone"} and now != "stopped":
            run("prlctl", "stop", "vm", "--kill")
        elif verb in {"pause", "suspend", "stop", "snapshot"} and now != "running":
            run("prlctl", "start", "vm")
        elif verb == "resume" and now not in {"paused", "suspended"}:
            if now == "stopped":
                run("prlctl", "start", "vm")
            run("prlctl", "suspend", "vm")
        elif verb == "snapshot-switch" and "{" not in run("prlctl", "snapshot-list", "vm"):
            run("prlctl", "snapshot", "vm")

    def killed(self, verb: tuple[str, ...], delay: float) -> None:
        child = subprocess.Popen(
            self.world.argv("prlctl", *verb), env=self.world.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(delay)
        self.world_kill()
        child.wait(120)

    def world_kill(self) -> None:
        made = Guest.__new__(Guest)
        made.world = self.world
        made.kill_vzd()

    def check(self, what: str) -> None:
        assert self.status() in {"stopped", "running", "paused", "suspended"}, what
        self.world.run("prlctl", "set", "vm", "--description", "repaired")  # takes the lease
        left = list((self.world.root / "var/lib/pyvz/journal").iterdir())
        names = set(re.findall(r"(vm|copy)\n", self.world.run("prlctl", "list", "-a")))
        if "copy" in names:
            self.world.run("prlctl", "delete", "copy", "--force")
        homes = list((self.world.root / "vz/vmprivate").iterdir())
        assert len(homes) == 1, (what, homes)
        conf = (homes[0] / "vm.conf").read_text()
        assert all(path.name in conf for path in homes[0].glob("*.hdd")), what
        assert not left, (what, left)
        alive = list((self.world.root / "run/pyvz/vm").glob("*/process.json"))
        assert len(alive) == (self.status() in {"running", "paused"}), what


def test_vzd_dies_in_the_middle_of_every_verb(world: World) -> None:
    sweep = Sweep(world)
    for verb, delay in itertools.product(VERBS, (0.1, 0.3, 0.6, 1.2)):
        sweep.ready(verb[0])
        sweep.killed(verb, delay)
        sweep.check(f"{' '.join(verb)} after {delay} s")
    sweep.ready("start")
    world.run("prlctl", "start", "vm")
    world.run("prlctl", "stop", "vm", "--kill")
