"""A machine goes on while it is backed up: what may be done meanwhile, what has to wait."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bundles import MIB, made
from images import busybox_root, busybox_tar
from pyvz.storage.daemon import Daemon
from pyvz.store.lease import holder
from pyvz.store.paths import Paths
from realnode import World, end, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires(
    "root", "program:qemu-system-x86_64", "program:qemu-storage-daemon"
)
PATIENCE = 120.0
DATA = 64 << 20  # bytes to read: some seconds


def until(wanted: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not wanted():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


class Machine:
    """A machine with data on its disk, which runs without a guest."""

    def __init__(self, world: World, scratch: Path, form: str = "qcow2") -> None:
        self.world = world
        self.prlctl("create", "vm1", "--vmtype", "vm", "-d", "debian")
        self.prlctl("set", "vm1", "--device-del", "hdd0", "--destroy-image-force")
        raw, image = scratch / "raw", scratch / "image.hdd"
        if form == "ploop":
            made(world.run, image, 128, DATA // MIB)
        else:
            raw.write_bytes(os.urandom(DATA))
            subprocess.run(["qemu-img", "convert", "-O", form, raw, image], check=True)
        self.prlctl("set", "vm1", "--device-add", "hdd", "--image", os.fspath(image))
        self.prlctl("set", "vm1", "--memsize", "192", "--cpus", "1")
        self.prlctl("start", "vm1")
        self.uuid = next((world.root / "vz/vmprivate").iterdir()).name
        self.place = world.root / "run/pyvz/vm-backup" / self.uuid

    def prlctl(self, *words: str, code: int = 0) -> str:
        return self.world.run("prlctl", *words, code=code)

    def refused(self, *words: str) -> str:
        """Run what must not succeed; return what it says."""
        argv = self.world.argv("prlctl", *words)
        done = subprocess.run(
            argv, env=self.world.env, capture_output=True, text=True, check=False, timeout=280
        )
        assert done.returncode != 0, done.stdout
        return done.stderr

    @property
    def qemu(self) -> int:
        path = self.world.root / "run/pyvz/vm" / self.uuid / "process.json"
        return int(json.loads(path.read_text())["pid"])

    def begin(self, *words: str) -> subprocess.Popen[str]:
        argv = self.world.argv("prlctl", *words)
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, env=self.world.env, stdout=pipe, stderr=pipe, text=True)

    def reading(self) -> bool:
        """Whether a backup is under way that has given the lease back."""
        return self.place.exists() and holder(Paths(self.world.root), self.uuid) is None

    @contextmanager
    def backup_held_up(self) -> Iterator[subprocess.Popen[str]]:
        """Have a backup that does not get on for the block.

        No program may be run by vzd meanwhile: its copy of the disk's descriptor, closed before the
        program begins, waits for the one who is held up.
        """
        for _ in range(10):
            backup = self.begin("backup", "vm1")
            until(lambda: self.reading() and Daemon(self.place / "hdd0").pid, "no backup begins")
            pid = Daemon(self.place / "hdd0").pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.5)
            if self.reading() and backup.poll() is None:
                break
            os.kill(pid, signal.SIGCONT)  # all had been read before
            assert ended(backup)[0] == 0
        else:
            pytest.fail("every backup ends before it can be held up")
        try:
            yield backup
        finally:
            os.kill(pid, signal.SIGCONT)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, out + errors


def test_what_goes_on(world: World, tmp_path: Path) -> None:
    """Looking and changing go on, what ends QEMU or touches its disks is refused, or waits."""
    machine = Machine(world, tmp_path)
    with machine.backup_held_up() as backup:
        assert "running" in machine.prlctl("status", "vm1")
        assert "running" in machine.prlctl("list", "vm1")
        machine.prlctl("set", "vm1", "--cpus", "2")
        machine.prlctl("set", "vm1", "--description", "changed meanwhile")
        machine.prlctl("pause", "vm1")
        machine.prlctl("start", "vm1")
        for words in (
            ("stop", "vm1", "--kill"),
            ("suspend", "vm1"),
            ("delete", "vm1", "--force"),
            ("snapshot", "vm1"),
            ("set", "vm1", "--device-set", "hdd0", "--size", "2G"),
        ):
            assert "vm1 is being backed up" in machine.refused(*words), words
        stop = machine.begin("stop", "vm1", "--kill", "--timeout", "100")
        assert backup.poll() is None
    assert ended(backup)[0] == 0
    code, said = ended(stop)
    assert code == 0, said
    assert "stopped" in machine.prlctl("status", "vm1")
    assert not machine.place.exists()
    assert "changed meanwhile" not in configuration_in_backup(world)


def configuration_in_backup(world: World) -> str:
    found = (world.root / "vz/backups/backups").glob("*/*.json")
    return next(found).read_text()


@pytest.mark.long
@pytest.mark.parametrize("form", ["qcow2", "ploop"])
def test_deaths(world: World, tmp_path: Path, form: str) -> None:
    """QEMU or vzd dies meanwhile: no backup, and nothing that is in anybody's way."""
    machine = Machine(world, tmp_path, form)
    with machine.backup_held_up() as backup:
        vzd = int((world.root / "run/pyvz/vzd.lock").read_text())
        os.kill(vzd, signal.SIGKILL)  # it dies when what it reads has come
    end(vzd, signal.SIGKILL)
    assert ended(backup)[0] != 0
    assert "running" in machine.prlctl("status", "vm1")
    until(lambda: not machine.place.exists(), "the next vzd leaves it there")
    with machine.backup_held_up() as backup:
        end(machine.qemu, signal.SIGKILL)
    code, said = ended(backup)
    assert code != 0
    assert "vm1 has stopped while it was being backed up" in said
    machine.prlctl("start", "vm1")
    machine.prlctl("backup", "vm1")
    machine.prlctl("stop", "vm1", "--kill")
    assert not machine.place.exists()
