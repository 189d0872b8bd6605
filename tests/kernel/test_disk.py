"""Disks beside the root disk: added, changed, removed, in snapshots and clones, converted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import faults
from ploops import mounted, ploop_node, read, write
from pyvz.errors import (
    AlreadyExists,
    BadValue,
    DiskNotFound,
    InvalidState,
    MountError,
    PrivateMissing,
    Unsupported,
    UsageError,
    VZError,
)
from pyvz.linux import loopdevice, mount
from pyvz.operations import (
    backup,
    clone,
    configure,
    convert,
    lifecycle,
    provision,
    restore,
    snapshot,
)
from pyvz.operations.backup import Request
from pyvz.operations.configure import SetRequest, SetResult
from pyvz.operations.node import Node
from pyvz.operations.restore import Wanted
from pyvz.storage import base

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with ploop_node(tmp_path) as made:
        yield made


@pytest.fixture(params=["ploop", "qcow2"])
def any_node(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    with ploop_node(tmp_path, request.param) as made:
        yield made


def set_(node: Node, *options: tuple[str, str | None], dialect: str = "prlctl") -> SetResult:
    return configure.set_options(node, "ct1", SetRequest(dialect, options))


def add(node: Node, mnt: str = "/data", *more: tuple[str, str | None]) -> SetResult:
    return set_(node, ("device-add", "hdd"), ("size", "64M"), ("mnt", mnt), *more)


def home_of(node: Node) -> Path:
    return node.registry.resolve("ct1").home


def stored(node: Node) -> str:
    return node.registry.conf_file(node.registry.resolve("ct1")).get("DISK") or ""


def test_added_used_removed(any_node: Node) -> None:
    node = any_node
    done = add(node)
    assert done.echo[0] == (
        f"Creating hdd1 (+) scsi:1 image='{home_of(node)}/hdd1.hdd' type='expanded' 64Mb mnt=/data"
    )
    assert "mnt=/data,image=hdd1.hdd" in stored(node)
    write(node, "inside", "data/file")
    with mounted(node) as root:
        assert os.statvfs(root / "data").f_blocks != os.statvfs(root).f_blocks
        assert (root / "data/file").read_text() == "inside"
    assert loopdevice.below(node.paths.private) == []
    set_(node, ("device-del", "hdd1"))
    assert stored(node) == ""
    with mounted(node) as root:
        assert list((root / "data").iterdir()) == []
    # The image was only detached: it comes back with its content.
    set_(node, ("device-add", "hdd"), ("image", "hdd1.hdd"), ("mnt", "/other"))
    assert read(node, "other/file") == "inside"
    set_(node, ("device-del", "hdd1"), ("destroy-image", None))
    assert not (home_of(node) / "hdd1.hdd").exists()


def test_changed(node: Node) -> None:
    add(node)
    write(node, "inside", "data/file")
    set_(node, ("device-set", "hdd1"), ("mnt", "/srv/deep/er"))
    assert read(node, "srv/deep/er/file") == "inside"
    set_(node, ("device-set", "hdd1"), ("size", "96M"))
    assert "size=98304" in stored(node)
    set_(node, ("device-set", "hdd1"), ("disable", None))
    assert read(node, "srv/deep/er/file") == ""
    set_(node, ("device-set", "hdd1"), ("enable", None), ("autocompact", "no"))
    assert read(node, "srv/deep/er/file") == "inside"
    uuid = node.registry.config(node.registry.resolve("ct1")).disk.disks[0].uuid
    set_(node, ("device-set", f"{{{uuid}}}"), ("mnt", "/again"), dialect="vzctl")
    assert read(node, "again/file") == "inside"


def test_root_disk_grows(node: Node) -> None:
    before = base.find(home_of(node)).usage(home_of(node)).total
    set_(node, ("device-set", "hdd0"), ("size", "1G"))
    env = node.registry.resolve("ct1")
    assert node.registry.conf_file(env).get("DISKSPACE") == "1048576:1048576"
    assert base.find(env.home).usage(env.home).total > before * 1.7
    set_(node, ("diskspace", "1200M"))
    assert base.find(env.home).usage(env.home).total > before * 2


def test_while_it_is_mounted(any_node: Node) -> None:
    node = any_node
    lifecycle.mount(node, "ct1")
    root = node.root(node.registry.resolve("ct1"))
    add(node)
    (root / "data/file").write_text("hot")
    set_(node, ("device-set", "hdd1"), ("mnt", "/moved"))
    assert (root / "moved/file").read_text() == "hot"
    assert list((root / "data").iterdir()) == []
    set_(node, ("device-del", "hdd1"))
    assert list((root / "moved").iterdir()) == []
    lifecycle.umount(node, "ct1")
    assert loopdevice.below(node.paths.private) == []


def test_refusals_change_nothing(node: Node, tmp_path: Path) -> None:
    add(node)
    before = (stored(node), sorted(os.listdir(home_of(node))))
    hdd: tuple[str, str | None] = ("device-add", "hdd")
    refused: list[tuple[type[VZError], tuple[tuple[str, str | None], ...]]] = [
        (AlreadyExists, (hdd, ("mnt", "/data/"), ("size", "64M"))),
        (AlreadyExists, (hdd, ("image", "hdd1.hdd"))),
        (BadValue, (hdd, ("mnt", "../../etc"))),
        (BadValue, (hdd, ("mnt", "/"))),
        (BadValue, (hdd, ("size", "-1"))),
        (BadValue, (hdd, ("size", "1M"))),
        (BadValue, (hdd, ("image", "root.hdd"))),
        (BadValue, (hdd, ("image", "a/b.hdd"))),
        (BadValue, (hdd, ("image", str(home_of(node) / "dump/x.hdd")))),
        (VZError, (hdd, ("image", str(tmp_path / "missing/x.hdd")), ("size", "64M"))),
        (Unsupported, (hdd, ("device", "/dev/sda"))),
        (DiskNotFound, (("device-del", "hdd7"),)),
        (DiskNotFound, (("device-set", "hdd7"), ("mnt", "/x"))),
        (UsageError, (("device-del", "hdd0"),)),
        (UsageError, (("device-set", "hdd0"), ("mnt", "/x"))),
        (UsageError, (hdd, ("device-del", "hdd1"))),
        (UsageError, (("device-del", "hdd1"), ("detach-only", None), ("destroy-image", None))),
    ]
    for kind, options in refused:
        with pytest.raises(kind):
            set_(node, *options)
        assert (stored(node), sorted(os.listdir(home_of(node)))) == before, options


def test_a_hostile_mount_point_stays_inside(node: Node, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with mounted(node) as root:
        (root / "link").symlink_to(outside)
    add(node, "/link")
    with pytest.raises(MountError):  # a link that leads nowhere inside
        lifecycle.mount(node, "ct1")
    assert loopdevice.below(node.paths.private) == []
    set_(node, ("device-set", "hdd1"), ("disable", None))
    with mounted(node) as root:
        (root / str(outside).lstrip("/")).mkdir(parents=True)
    set_(node, ("device-set", "hdd1"), ("enable", None))
    with mounted(node) as root:
        assert not mount.is_mount_point(outside)
        assert mount.is_mount_point(root / str(outside).lstrip("/"))


def test_part_of_snapshots_and_clones(any_node: Node) -> None:
    node = any_node
    add(node)
    write(node, "one", "data/file")
    guid = snapshot.create(node, "ct1").guid
    write(node, "two", "data/file")
    add(node, "/later")
    write(node, "new", "later/file")
    with pytest.raises(InvalidState, match="snapshots"):
        set_(node, ("device-del", "hdd1"), ("destroy-image", None))
    snapshot.switch(node, "ct1", guid)
    assert (read(node, "data/file"), read(node, "later/file")) == ("one", "new")
    clone.clone(node, "ct1", "ct2")
    clone.clone(node, "ct1", "ct3", options=clone.CloneOptions(linked=True))
    for copy in ("ct2", "ct3"):
        with mounted(node, copy) as root:
            assert (root / "data/file").read_text() == "one"
            (root / "data/file").write_text(copy)
    provision.delete(node, "ct3")
    assert read(node, "data/file") == "one"
    set_(node, ("device-del", "hdd1"), ("destroy-image-force", None))
    snapshot.switch(node, "ct1", guid)
    snapshot.delete(node, "ct1", guid)


def test_a_missing_image_stops_the_mount(node: Node) -> None:
    add(node)
    (home_of(node) / "hdd1.hdd").rename(home_of(node) / "away")
    with pytest.raises(PrivateMissing, match="hdd1"):
        lifecycle.mount(node, "ct1")
    assert loopdevice.below(node.paths.private) == []
    set_(node, ("device-set", "hdd1"), ("disable", None))
    write(node, "x")


@pytest.mark.parametrize("verb", ["add", "del"])
def test_killed(node: Node, verb: str) -> None:
    def work() -> None:
        if verb == "add":
            add(node)
        else:
            set_(node, ("device-del", "hdd1"), ("destroy-image", None))

    for number in range(2, 300, 4):
        if verb == "del" and not stored(node):
            add(node)
        died = faults.killed_at(number, work, node.paths.root)
        provision.recover(node)
        assert loopdevice.below(node.paths.private) == []
        assert ("hdd1.hdd" in stored(node)) == (home_of(node) / "hdd1.hdd").exists(), number
        if not died:
            return
        if verb == "add" and stored(node):
            set_(node, ("device-del", "hdd1"), ("destroy-image", None))
    pytest.fail("the verb has no end")


def test_converted_there_and_back(node: Node) -> None:
    with mounted(node) as root:
        (root / "file").write_text("content")
        os.chown(root / "file", 1000, 1000)
        os.link(root / "file", root / "again")
        os.setxattr(root / "file", "user.x", b"y")
    before = convert.convert(node, "ct1", "simfs")
    assert before.before == "ploop"
    assert before.files > 5
    assert sorted(p.name for p in home_of(node).iterdir() if "hdd" in p.name) == []
    assert (home_of(node) / "fs/again").stat().st_ino == (home_of(node) / "fs/file").stat().st_ino
    convert.convert(node, "ct1", "5")
    assert not (home_of(node) / "fs").exists()
    with mounted(node) as root:
        assert (root / "file").read_text() == "content"
        assert (root / "file").stat().st_uid == 1000
        assert os.getxattr(root / "file", "user.x") == b"y"
    assert convert.convert(node, "ct1", "ploop").files == 0
    assert loopdevice.below(node.paths.private) == []


def test_all_disks_are_converted(node: Node) -> None:
    add(node)
    write(node, "inside", "data/file")
    write(node, "content")
    with pytest.raises(InvalidState, match=r"hdd1\.hdd"):
        convert.convert(node, "ct1", "simfs")
    for layout in ("qcow2", "ploop"):
        convert.convert(node, "ct1", layout)
        many = base.many_disks(base.find(home_of(node)), home_of(node))
        assert many.disks(home_of(node)) == ["root.hdd", "hdd1.hdd"]
        assert many.size(home_of(node), disk="hdd1.hdd") == 64 << 20
        assert (read(node), read(node, "data/file")) == ("content", "inside")
    assert not (home_of(node) / "qcow2").exists()
    assert loopdevice.below(node.paths.private) == []


@pytest.mark.parametrize("stride", faults.strides(11))
def test_conversion_killed(node: Node, stride: int) -> None:
    write(node, "content")
    for number in faults.steps(stride, 300, 3):
        to = "simfs" if base.find(home_of(node)).name == "ploop" else "ploop"
        died = faults.killed_at(
            number, lambda to=to: convert.convert(node, "ct1", to), node.paths.root
        )
        provision.recover(node)
        assert read(node) == "content"
        left = {"root.hdd", "fs"} & set(os.listdir(home_of(node)))
        assert len(left) == 1, number
        assert not (home_of(node) / ".convert").exists()
        assert loopdevice.below(node.paths.private) == []
        if not died:
            return
    pytest.fail("the verb has no end")


def test_backed_up_with_all_disks(any_node: Node) -> None:
    node = any_node
    add(node)
    write(node, "one", "data/file")
    write(node, "root")
    full = backup.create(node, "ct1", Request())
    write(node, "two", "data/file")
    again = backup.create(node, "ct1", Request())
    assert again.stored < full.stored
    assert [each.name for each in again.disks] == ["root.hdd", "hdd1.hdd"]
    env = node.registry.resolve("ct1")
    shots = base.many_disks(base.find(env.home), env.home)
    assert [list(shots.snapshots(env.home, disk=name)) for name in shots.disks(env.home)] == [
        [],
        [],
    ]
    for tag, text in ((full.tag, "one"), (again.tag, "two")):
        name = restore.restore(node, Wanted(tag=tag, name=f"from-{text}")).name
        with mounted(node, name) as root:
            assert (root / "data/file").read_text() == text
            assert (root / "file").read_text() == "root"
    assert backup.verify(node) == []
