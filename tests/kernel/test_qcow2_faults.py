"""Death at every step of a qcow2 disk's life, and of QEMU's own programs at any moment.

Afterwards the disk is whole, its content is one of the two legal ones, every snapshot has its own,
and there is no daemon, mount or device left.  The sweep over every step is `long`.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import faults
import thinploop
from pyvz.linux import loopdevice, mount
from pyvz.model.task import NoProgress
from pyvz.operations import pool
from pyvz.storage import base, qcow2
from pyvz.storage.daemon import Daemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

MIB = 1 << 20
SIZE = 320 * MIB
ONE, TWO = (f"{{{n}0000000-0000-4000-8000-00000000000{n}}}" for n in (1, 2))

Verb = Callable[[qcow2.Driver, Path, Path], object]


def _cycle(driver: qcow2.Driver, home: Path, target: Path) -> None:
    driver.mount(home, target)
    driver.umount(home, target)


def _running(verb: Verb) -> Verb:
    def run(driver: qcow2.Driver, home: Path, target: Path) -> None:
        driver.mount(home, target)
        verb(driver, home, target)
        driver.umount(home, target)

    return run


def _clone(driver: qcow2.Driver, home: Path, target: Path) -> None:
    other = home.parent / "other"
    other.mkdir(exist_ok=True)
    driver.clone(home, other, NoProgress())


def _show(driver: qcow2.Driver, home: Path, target: Path) -> None:
    driver.mount_snapshot(home, ONE, target)
    driver.umount_snapshot(home, ONE, target)


SWEEP: dict[str, Verb] = {
    "mount": _cycle,
    "grow": lambda driver, home, _: driver.resize(home, SIZE + 64 * MIB),
    "grow running": _running(lambda driver, home, _: driver.resize(home, SIZE + 64 * MIB)),
    "snapshot": lambda driver, home, _: driver.snapshot(home, TWO),
    "snapshot running": _running(lambda driver, home, _: driver.snapshot(home, TWO)),
    "switch": lambda driver, home, _: driver.switch(home, ONE),
    "delete": lambda driver, home, _: driver.delete_snapshot(home, ONE),
    "delete running": _running(lambda driver, home, _: driver.delete_snapshot(home, ONE)),
    "show a snapshot": _show,
    "clone": _clone,
    "compact": lambda driver, home, _: driver.compact(home),
}


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.long, id="all"), pytest.param(23, id="some")]
)
@pytest.mark.parametrize("verb", SWEEP)
def test_death_at_a_step(tmp_path: Path, verb: str, step: int) -> None:
    driver = qcow2.Driver()
    home, target, trial = (tmp_path / name for name in ("home", "root", "trial"))
    home.mkdir()
    driver.create(home, size=SIZE, source=None, progress=NoProgress())
    driver.mount(home, target)
    (target / "file").write_text("old")
    driver.snapshot(home, ONE)
    (target / "file").write_text("new")
    driver.umount(home, target)
    first = 1 if step == 1 else 2 + len(verb) % step
    for number in range(first, 400, step):
        trial.mkdir()
        driver.clone(home, trial, NoProgress())
        died = faults.killed_at(number, lambda: SWEEP[verb](driver, trial, target), tmp_path)
        pool.thaw_roots(tmp_path)  # as vzd does when it starts
        mount.umount(target)
        check_whole(driver, trial, target, {"old", "new"} if verb == "switch" else {"new"})
        driver.remove(trial, NoProgress())
        assert os.listdir(trial) == []
        trial.rmdir()
        if (other := tmp_path / "other").exists():
            if driver.present(other):
                check_whole(driver, other, target, {"new"})
            driver.remove(other, NoProgress())
            assert os.listdir(other) == []
            other.rmdir()
        assert loopdevice.below(tmp_path.resolve()) == []
        assert mount.mounts(tmp_path.resolve()) == []
        if not died:
            break
    assert number > 2


def check_whole(driver: qcow2.Driver, home: Path, target: Path, legal: set[str]) -> None:
    driver.mount(home, target)
    assert (target / "file").read_text() in legal
    driver.umount(home, target)
    names = driver.snapshots(home)
    assert set(names) <= {ONE, TWO}
    for name, content in ((ONE, "old"), (TWO, "new")):
        if name in names:
            driver.mount_snapshot(home, name, target)
            assert (target / "file").read_text() == content
            driver.umount_snapshot(home, name, target)
    report = driver.check(home)
    assert not report.errors
    # QEMU's repair of flags may leave a cluster to nobody, which the next mount frees.
    assert report.leaks in {(), ("1 clusters belong to nothing",)}
    driver.mount(home, target)
    driver.umount(home, target)
    assert driver.check(home).clean
    image = home / "qcow2/disk.qcow2"
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image], check=True)
    driver.resize(home, SIZE + 64 * MIB)


def test_death_in_create(tmp_path: Path) -> None:
    driver = qcow2.Driver()
    home, target = tmp_path / "home", tmp_path / "root"
    home.mkdir()

    def create() -> None:
        driver.create(home, size=SIZE, source=None, progress=NoProgress())

    for number in range(1, 200, 7):
        died = faults.killed_at(number, create, tmp_path)
        assert driver.present(home) != died
        create()
        driver.mount(home, target)
        driver.umount(home, target)
        driver.remove(home, NoProgress())
        assert os.listdir(home) == []
        if not died:
            break
    assert number > 10


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.long, id="all"), pytest.param(29, id="some")]
)
@pytest.mark.parametrize("verb", ["adopt", "hand over"])
def test_death_between_forms(tmp_path: Path, verb: str, step: int) -> None:
    """A thin ploop disk that goes over into a qcow2 one, or comes back: one of both, whole."""
    driver = qcow2.Driver()
    target = tmp_path / "root"
    (tmp_path / "raws").mkdir()
    raws = thinploop.states(tmp_path / "raws", (b"one", b"two"), 64 * MIB, table=False)
    for number in range(step // 2 + 1, 200, step):
        home = tmp_path / f"home{number}"
        home.mkdir()
        thinploop.stack(home / "root.hdd", raws)
        expected = b"two"
        if verb == "hand over":
            driver.adopt(home)
            driver.mount(home, target)
            (target / "file").write_bytes(expected := b"three")
            driver.snapshot(home, ONE)
            driver.umount(home, target)
            died = faults.killed_at(
                number, lambda at=home: driver.hand_over(at, "ploop", NoProgress()), tmp_path
            )
            if base.find(home).name == "qcow2":
                assert driver.hand_over(home, "ploop", NoProgress())
        else:
            died = faults.killed_at(number, lambda at=home: driver.adopt(at), tmp_path)
            if base.find(home).name == "ploop":
                assert driver.adopt(home)
        found = base.find(home)
        found.mount(home, target)
        assert (target / "file").read_bytes() == expected
        found.umount(home, target)
        if verb == "hand over":
            found.switch(home, ONE)
            found.mount(home, target)
            assert (target / "file").read_bytes() == expected
            found.umount(home, target)
        found.remove(home, NoProgress())
        if not died:
            break
    assert number > 5
    shutil.rmtree(tmp_path / "raws")


@pytest.mark.long
@pytest.mark.parametrize("words", [("-c", TWO), ("-a", ONE), ("-d", ONE)], ids=str)
def test_program_is_killed_at_any_moment(tmp_path: Path, words: tuple[str, str]) -> None:
    """As a power cut in the middle of QEMU's own work on a snapshot."""
    driver = qcow2.Driver()
    home, target = tmp_path / "home", tmp_path / "root"
    home.mkdir()
    driver.create(home, size=SIZE, source=None, progress=NoProgress())
    driver.mount(home, target)
    (target / "file").write_text("old")
    (target / "big").write_bytes(os.urandom(96 * MIB))
    driver.snapshot(home, ONE)
    (target / "file").write_text("new")
    with (target / "big").open("r+b") as stream:
        stream.write(os.urandom(32 * MIB))
    driver.umount(home, target)
    image = home / "qcow2/disk.qcow2"
    good = tmp_path / "good"
    shutil.copy(image, good)
    argv = ["qemu-img", "snapshot", "-q", *words, image]
    began = time.monotonic()
    subprocess.run(argv, check=True)
    whole = time.monotonic() - began
    chance = random.Random(7)
    killed = 0
    for _ in range(40):
        subprocess.run(["cp", "--sparse=always", good, image], check=True)
        (home / "qcow2/open").touch()
        process = subprocess.Popen(argv)
        time.sleep(chance.uniform(0.1, 1.0) * whole)
        process.kill()
        killed += process.wait() != 0
        check_whole(driver, home, target, {"old", "new"} if words[0] == "-a" else {"new"})
    assert killed > 5


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.long)])
def test_daemon_is_killed_while_it_takes_snapshots(tmp_path: Path, times: int) -> None:
    driver = qcow2.Driver()
    home, target = tmp_path / "home", tmp_path / "root"
    home.mkdir()
    driver.create(home, size=SIZE, source=None, progress=NoProgress())
    for number in range(times):
        driver.mount(home, target)
        (target / "file").write_text("new")
        subprocess.run(["sync", "-f", target], check=True)
        pid = Daemon(home / "qcow2/daemon").pid
        assert pid is not None
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.0{number * 2}; kill -9 {pid}"])
        for index in range(100):
            try:
                driver.snapshot(home, f"{{{number}000{index:04d}-0000-4000-8000-000000000009}}")
            except Exception:  # noqa: BLE001  whatever: it was killed under us
                break
        killer.wait()
        driver.umount(home, target)
        driver.mount(home, target)
        assert (target / "file").read_text() == "new"
        driver.umount(home, target)
        image = home / "qcow2/disk.qcow2"
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image], check=True)
