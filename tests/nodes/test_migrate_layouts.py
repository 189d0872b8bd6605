"""Disks that travel as what has changed on them: qcow2 by its blocks, btrfs by its streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from places import file_system
from twonodes import Side, TwoNodes, busybox_root, busybox_tar, two_nodes, wait_for

__all__ = ["busybox_root", "busybox_tar", "two_nodes"]

pytestmark = pytest.mark.requires("root", "userns", "sshd", "criu")


@pytest.fixture
def on_btrfs(two_nodes: TwoNodes) -> Iterator[TwoNodes]:
    """Both nodes keep their containers on a btrfs of their own."""
    with ExitStack() as stack:
        for side in (two_nodes.a, two_nodes.b):
            private = side.root / "vz/private"
            if private.is_dir():
                private.rmdir()
            stack.enter_context(file_system("btrfs", private, 1 << 30))
        yield two_nodes
        for side in (two_nodes.a, two_nodes.b):
            for row in side.rows():
                side.prlctl("delete", row["uuid"], "--force")


def home_of(side: Side, name: str) -> Path:
    return Path(side.prlctl("list", "-H", "-o", "home", name).strip())


def goes_there_and_back(nodes: TwoNodes, layout: str) -> None:
    """Live to b, stopped to a again."""
    a, b = nodes.a, nodes.b
    nodes.lan_networks()
    uuid = a.create_busy("ct", "10.99.0.50", layout=layout)
    a.inside("ct", "dd if=/dev/urandom of=/root/data bs=1M count=8; sync")
    digest = a.inside("ct", "md5sum", "/root/data")
    before = a.counter("ct")
    assert "stood still" in a.vzmigrate("--online", "b", "ct")
    assert (a.state("ct"), b.state("ct")) == ("", "running")
    assert b.counter("ct") >= before
    now = b.counter("ct")
    wait_for(lambda: b.counter("ct") > now)
    assert b.inside("ct", "md5sum", "/root/data") == digest
    b.inside("ct", "echo there > /root/there")
    b.prlctl("stop", "ct")
    b.vzmigrate("a", "ct")
    assert (a.state("ct"), b.state("ct")) == ("stopped", "")
    a.prlctl("start", "ct")
    assert a.inside("ct", "cat /root/there") == "there\n"
    assert a.inside("ct", "md5sum", "/root/data") == digest
    assert [row["uuid"] for row in a.rows("ct")] == [uuid]


def test_btrfs(on_btrfs: TwoNodes) -> None:
    goes_there_and_back(on_btrfs, "btrfs")
    home = home_of(on_btrfs.a, "ct")
    assert sorted(path.name for path in home.iterdir() if path.name.startswith("subvol")) == [
        "subvol"
    ]
    on_btrfs.a.prlctl("stop", "ct", "--kill")


def test_qcow2(two_nodes: TwoNodes) -> None:
    goes_there_and_back(two_nodes, "qcow2")


@pytest.mark.long
def test_qcow2_with_several_disks_and_a_snapshot(two_nodes: TwoNodes) -> None:
    a, b = two_nodes.a, two_nodes.b
    two_nodes.lan_networks()
    a.create_busy("ct", "10.99.0.50", layout="qcow2")
    home = home_of(a, "ct")
    a.prlctl("set", "ct", "--device-add", "hdd", "--size", "64M", "--mnt", "/data")
    a.inside("ct", "echo kept > /data/file; sync")
    assert {path.parent.name for path in home.glob("*/disk.qcow2")} == {"hdd1.hdd", "qcow2"}
    a.vzmigrate("--online", "b", "ct")
    assert b.inside("ct", "cat /data/file") == "kept\n"
    b.prlctl("stop", "ct", "--kill")
    b.prlctl("snapshot", "ct")
    b.vzmigrate("a", "ct")
    assert len(a.prlctl("snapshot-list", "ct", "-H").splitlines()) == 1
    a.prlctl("start", "ct")
    assert a.inside("ct", "cat /data/file") == "kept\n"
    a.prlctl("stop", "ct", "--kill")
