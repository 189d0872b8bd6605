"""Ploop disks as files of the node, on this kernel: made, mounted, resized, snapshot, imported."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvz.errors import (
    AlreadyExists,
    BadValue,
    Busy,
    InvalidState,
    MountError,
    NotMounted,
    StorageError,
    Unsupported,
    UsageError,
)
from pyvz.image import convert as conversion
from pyvz.image import descriptor, identity
from pyvz.image.delta import stack, stack_of
from pyvz.image.descriptor import EXPANDED, PREALLOCATED, RAW
from pyvz.image.digest import digest
from pyvz.linux import loopdevice, mount
from pyvz.model.task import NoProgress
from pyvz.operations import image, imagemount
from pyvz.operations.image import Wanted
from pyvz.operations.imagemount import Way
from pyvz.operations.node import Node
from worlds import make_node

MIB = 1 << 20
QUIET = NoProgress()
ONE = "{11111111-1111-4111-8111-111111111111}"

pytestmark = pytest.mark.requires("loop", "program:mkfs.ext4")


class World:
    """A node, one disk, and a place to mount it."""

    def __init__(self, root: Path) -> None:
        self.node: Node = make_node(root / "node")
        self.home = root / "disk"
        self.home.mkdir()
        self.top = self.home / "root.hds"
        self.path = os.fspath(self.home / descriptor.NAME)
        self.target = root / "mnt"
        self.target.mkdir()

    def make(self, fstype: str | None = "ext4", size: int = 128 * MIB, **more: bool) -> None:
        image.create(
            self.node, os.fspath(self.top), Wanted(size, PREALLOCATED, fstype, **more), QUIET
        )

    def mount(self, **more: object) -> None:
        way = Way(os.fspath(self.target), **more)  # type: ignore[arg-type]
        imagemount.attach(self.node, self.path, way)

    def umount(self) -> None:
        imagemount.detach(self.node, target=os.fspath(self.target))

    def resize(self, size: int) -> int:
        return image.resize(self.node, self.path, size, QUIET)

    def total(self) -> int:
        found = os.statvfs(self.target)
        return found.f_blocks * found.f_frsize


@pytest.fixture
def world(short_root: Path) -> Iterator[World]:
    made = World(short_root)
    yield made
    for row in imagemount.attached():
        if row.image.startswith(os.fspath(short_root)):
            imagemount.detach(made.node, device=row.device)


@pytest.mark.parametrize("partition", [False, True])
def test_a_disk_keeps_its_files_through_every_size(world: World, partition: bool) -> None:
    world.make(partition=partition)
    world.mount()
    (world.target / "file").write_bytes(b"content" * 1000)
    assert identity.in_use(world.top)
    world.umount()
    assert not identity.in_use(world.top)
    assert world.resize(256 * MIB) == 256 * MIB
    world.mount()
    assert world.total() > 200 * MIB
    world.umount()
    assert world.resize(80 * MIB) == 80 * MIB
    assert image.fscheck(world.node, world.path)
    world.mount(readonly=True)
    assert (world.target / "file").read_bytes() == b"content" * 1000
    assert 60 * MIB < world.total() < 80 * MIB
    world.umount()
    assert descriptor.load(Path(world.path)).disk_size == 80 * MIB
    assert all(report.clean for _, report in image.check(world.node, world.path))


@pytest.mark.requires("program:mkfs.xfs")
def test_xfs_grows_while_it_is_mounted(world: World) -> None:
    world.make("xfs", 320 * MIB, partition=True)
    world.mount()
    (world.target / "file").write_bytes(b"content")
    assert world.resize(640 * MIB) == 640 * MIB
    assert world.total() > 500 * MIB
    with pytest.raises(InvalidState, match="mounted"):
        world.resize(400 * MIB)
    world.umount()
    with pytest.raises(Unsupported, match="xfs"):
        world.resize(400 * MIB)
    assert image.fscheck(world.node, world.path)


def test_snapshots_go_back_and_are_seen_beside(world: World) -> None:
    world.make()
    world.mount()
    (world.target / "file").write_text("old")
    assert imagemount.snapshot(world.node, world.path, ONE) == ONE
    (world.target / "file").write_text("new")
    with pytest.raises(AlreadyExists):
        imagemount.snapshot(world.node, world.path, ONE)
    world.umount()
    world.mount(guid=ONE)
    assert (world.target / "file").read_text() == "old"
    with pytest.raises(OSError, match="Read-only"):
        (world.target / "file").write_text("x")
    world.umount()
    imagemount.switch(world.node, world.path, ONE)
    world.mount()
    assert (world.target / "file").read_text() == "old"
    world.umount()
    rows = imagemount.snapshots(world.node, world.path)
    assert (rows[0].uuid, rows[0].current) == (ONE, False)
    assert imagemount.merge(world.node, world.path) == [ONE]
    assert len(imagemount.snapshots(world.node, world.path)) == 1
    names = {name for name in os.listdir(world.home) if not name.endswith(".lck")}
    assert len(names) == 2


def test_a_disk_in_use_is_left_alone(world: World) -> None:
    world.make()
    world.mount()
    with pytest.raises(Busy):
        world.mount()
    with pytest.raises(Busy):
        image.check(world.node, world.path)
    with pytest.raises(Busy):
        image.convert(world.node, world.path, QUIET, mode=EXPANDED)
    with pytest.raises(Busy):
        imagemount.swap(world.node, world.path, os.fspath(world.top), guid=None, keep_name=True)
    with (world.target / "open").open("w"), pytest.raises(Busy):
        world.umount()
    world.umount()
    with pytest.raises(NotMounted):
        imagemount.detach(world.node, path=world.path)
    found = imagemount.attach(world.node, world.path, Way())
    assert found.target == ""
    assert imagemount.detach(world.node, device=found.device) == found.device


def test_mount_options_reach_the_mount_and_the_file_system(world: World) -> None:
    world.make()
    world.mount(words=("noatime", "nosuid", "commit=7"))
    entry = mount.mount_at(world.target)
    assert entry is not None
    assert {"noatime", "nosuid", "nodev"} <= set(entry.options)
    lines = Path("/proc/self/mounts").read_text().splitlines()
    assert "commit=7" in next(line for line in lines if f" {world.target} " in line)
    world.umount()
    with pytest.raises(MountError):
        world.mount(words=("commit=many",))
    with pytest.raises(BadValue, match="holds ext4"):
        world.mount(fstype="xfs")
    world.mount(words=("ro",), fstype="ext4")
    assert not identity.in_use(world.top)
    world.umount()


def test_a_stack_whose_top_is_whole_is_mounted(world: World) -> None:
    world.make()
    world.mount()
    (world.target / "file").write_text("old")
    imagemount.snapshot(world.node, world.path, ONE)
    (world.target / "file").write_text("new")
    world.umount()
    top, below = os.fspath(world.top), f"{world.top}.{ONE}"
    imagemount.attach(world.node, top, Way(os.fspath(world.target), below=(below,)))
    assert (world.target / "file").read_text() == "new"
    world.umount()
    thin = world.home / "thin"
    image.copy(world.node, top, os.fspath(thin), QUIET, mode=EXPANDED)
    with pytest.raises(Unsupported, match="thin"):
        imagemount.attach(world.node, os.fspath(thin), Way(below=(below,)))


def test_a_raw_image_is_mounted(world: World) -> None:
    raw = world.home / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", raw], check=True)
    for readonly in (False, True):
        way = Way(os.fspath(world.target), raw=True, readonly=readonly, fsck=True)
        found = imagemount.attach(world.node, os.fspath(raw), way)
        assert found.image == os.fspath(raw)
        if not readonly:
            (world.target / "file").write_text("x")
        assert (world.target / "file").read_text() == "x"
        world.umount()


def test_a_temporary_snapshot_is_attached_and_goes(world: World) -> None:
    world.make()
    world.mount()
    found = imagemount.temporary(world.node, world.path, ONE)
    assert descriptor.load(Path(world.path)).shot(ONE).temporary == "Temporary"
    assert Path(found.device).exists()
    assert imagemount.end_temporary(world.node, world.path) == found.device
    assert len(imagemount.snapshots(world.node, world.path)) == 1
    with pytest.raises(NotMounted):
        imagemount.end_temporary(world.node, world.path)
    world.umount()


def test_thin_and_raw_disks_are_imported(world: World) -> None:
    world.make()
    world.mount()
    (world.target / "file").write_bytes(b"content" * 5000)
    world.umount()
    for mode in (EXPANDED, RAW, PREALLOCATED, EXPANDED):
        image.convert(world.node, world.path, QUIET, mode=mode)
        assert sorted(os.listdir(world.home)) == [
            "DiskDescriptor.xml", "DiskDescriptor.xml.lck", "root.hds",
        ]  # fmt: skip
        assert descriptor.load(Path(world.path)).mode == mode
        if mode == EXPANDED:
            with pytest.raises(Unsupported):
                world.mount()
            continue
        world.mount()
        assert (world.target / "file").read_bytes() == b"content" * 5000
        world.umount()
    assert world.resize(160 * MIB) == 160 * MIB
    assert image.facts(world.node, world.path).mode == PREALLOCATED
    world.mount()
    assert (world.target / "file").read_bytes() == b"content" * 5000
    world.umount()


def test_a_descriptor_is_restored_for_what_nova_puts_there(world: World) -> None:
    raw = world.home / "root.hds"
    with raw.open("wb") as file:
        file.truncate(100 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", raw], check=True)
    directory = os.fspath(world.home)
    image.restore_descriptor(world.node, directory, os.fspath(raw), mode=RAW)
    assert descriptor.load(Path(world.path)).mode == RAW
    world.resize(200 * MIB)
    assert identity.is_identity(raw)
    with stack([raw]) as disk:
        conversion.to_thin(disk, world.home / "thin", QUIET, version=1)
    (world.home / "thin").replace(raw)
    image.restore_descriptor(world.node, directory, os.fspath(raw))
    assert descriptor.load(Path(world.path)).mode == EXPANDED
    world.resize(300 * MIB)
    world.mount()
    assert world.total() > 250 * MIB
    world.umount()
    with pytest.raises(UsageError):
        image.restore_descriptor(world.node, directory, "/etc/passwd", mode=RAW)
    with pytest.raises(StorageError):
        image.restore_descriptor(world.node, directory, world.path)


def test_space_comes_back(world: World) -> None:
    world.make()
    world.mount()
    (world.target / "file").write_bytes(os.urandom(40 * MIB))
    os.sync()
    (world.target / "file").unlink()
    assert imagemount.discard(world.node, world.path) >= 30 * MIB
    world.umount()


def test_what_is_there_is_not_replaced_and_a_failure_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(descriptor, "save", _refuse)
        with pytest.raises(StorageError, match="refused"):
            world.make()
    assert os.listdir(world.home) == ["DiskDescriptor.xml.lck"]
    with pytest.raises(UsageError):
        world.make(size=MIB)
    world.make()
    with pytest.raises(AlreadyExists):
        world.make()
    assert loopdevice.find(world.top) == []


def _refuse(*_: object) -> None:
    raise StorageError("refused by the test")


class Crash(BaseException):
    """The program ends here."""


def crash_at(patch: pytest.MonkeyPatch, step: int) -> list[str]:
    """End the program at the STEPth change of names or descriptor; returns what was done."""
    done: list[str] = []

    def wrap(owner: object, name: str) -> None:
        call = getattr(owner, name)

        def act(*args: object, **more: object) -> object:
            if len(done) >= step:
                raise Crash
            done.append(name)
            return call(*args, **more)

        patch.setattr(owner, name, act)

    for owner, name in ((descriptor, "save"), (Path, "replace"), (Path, "unlink"), (os, "link")):
        wrap(owner, name)
    return done


@pytest.mark.parametrize(
    ("before", "after"),
    [(EXPANDED, PREALLOCATED), (PREALLOCATED, EXPANDED), (RAW, PREALLOCATED), (EXPANDED, RAW)],
)
def test_a_conversion_that_is_killed_leaves_the_same_disk(
    world: World, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    world.make(None, 6 * MIB)
    with world.top.open("r+b") as file:
        file.seek(identity.RESERVE + 3 * MIB)
        file.write(b"content" * 1000)
    image.convert(world.node, world.path, QUIET, mode=before)
    wanted = content(world)
    for step in range(30):
        with monkeypatch.context() as patch:
            done = crash_at(patch, step)
            try:
                image.convert(world.node, world.path, QUIET, mode=after)
            except Crash:
                pass
            else:
                break
        assert content(world) == wanted, done
        image.convert(world.node, world.path, QUIET, mode=after)
        assert content(world) == wanted, done
        image.convert(world.node, world.path, QUIET, mode=before)
    assert 2 < step < 29
    assert content(world) == wanted
    assert sorted(name for name in os.listdir(world.home) if "lck" not in name) == [
        "DiskDescriptor.xml",
        "root.hds",
    ]


def content(world: World) -> str:
    with stack_of(world.home, descriptor.load(Path(world.path))) as disk:
        return digest(disk, QUIET)
