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


# The state that a verb needs, and its words.
VERBS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("stopped", ("start", "vm")),
    ("running", ("pause", "vm")),
    ("paused", ("resume", "vm")),
    ("running", ("suspend", "vm")),
    ("suspended", ("resume", "vm")),
    ("running", ("snapshot", "vm")),
    ("snapshot", ("snapshot-switch", "vm")),
    ("snapshot", ("snapshot-delete", "vm", "--id", "ID")),
    ("running", ("set", "vm", "--device-add", "hdd", "--size", "64M")),
    ("disk", ("set", "vm", "--device-del", "hdd1", "--destroy-image-force")),
    ("running", ("set", "vm", "--cpus", "3", "--memsize", "320")),
    ("running", ("set", "vm", "--device-add", "net")),
    ("card", ("set", "vm", "--device-disconnect", "net0")),
    ("running", ("reset", "vm")),
    ("running", ("stop", "vm", "--kill")),
    ("stopped", ("set", "vm", "--device-add", "hdd", "--size", "64M")),
    ("stopped", ("clone", "vm", "--name", "copy")),
    ("copy", ("delete", "copy")),
    ("stopped", ("create", "copy", "--vmtype", "vm")),
)


class Sweep:
    """A machine with an empty disk, a vzd that is killed, and what must be true afterwards."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.run("prlctl", "create", "vm", "--vmtype", "vm")
        world.run("prlctl", "set", "vm", "--memsize", "64")

    def status(self, name: str = "vm") -> str:
        return self.world.run("prlctl", "status", name).split()[-1]

    def ready(self, needed: str) -> None:
        """Bring the machine into the state that a verb needs."""
        run, now = self.world.run, self.status()
        if needed in {"stopped", "copy"}:
            if now != "stopped":
                run("prlctl", "stop", "vm", "--kill")
        elif needed in {"paused", "suspended"}:
            if now != needed:
                self.ready("running")
                run("prlctl", "pause" if needed == "paused" else "suspend", "vm")
        elif now != "running":
            run("prlctl", "start", "vm")
        listed = run("prlctl", "list", "-i", "vm")
        if needed == "snapshot" and "{" not in run("prlctl", "snapshot-list", "vm", "-H"):
            run("prlctl", "snapshot", "vm")
        elif needed == "disk" and "hdd1" not in listed:
            run("prlctl", "set", "vm", "--device-add", "hdd", "--size", "64M")
        elif needed == "card" and "net0" not in listed:
            run("prlctl", "set", "vm", "--device-add", "net")
        elif needed == "copy":
            run("prlctl", "clone", "vm", "--name", "copy")

    def words(self, verb: tuple[str, ...]) -> tuple[str, ...]:
        """Return the words of a verb, with the id of a snapshot where they say ID."""
        if "ID" not in verb:
            return verb
        rows = self.world.run("prlctl", "snapshot-list", "vm", "-H").split()
        return tuple(rows[-1].lstrip("*") if word == "ID" else word for word in verb)

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

    def saved(self, what: str) -> None:
        """Suspend the machine and let it go on."""
        for verb in ("suspend", "resume"):
            done = subprocess.run(
                self.world.argv("prlctl", verb, "vm"), env=self.world.env, input="",
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if "was to be taken out" in done.stderr:
                # Nobody in it lets a card go: told, and gone with its next start.
                self.world.run("prlctl", "stop", "vm", "--kill")
                return
            assert not done.returncode, (what, verb, done.stderr)

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
    for (needed, verb), delay in itertools.product(VERBS, (0.1, 0.3, 0.6, 1.2)):
        sweep.ready(needed)
        sweep.killed(sweep.words(verb), delay)
        what = f"{' '.join(verb)} after {delay} s"
        sweep.check(what)
        if needed in {"running", "disk", "card"} and sweep.status() == "running":
            sweep.saved(what)  # the state of what QEMU has now fits a QEMU that is made so
    sweep.ready("stopped")
    world.run("prlctl", "start", "vm")
    world.run("prlctl", "stop", "vm", "--kill")
