"""Disks that travel as what has changed on them: qcow2 by its blocks, others by their streams."""

from __future__ import annotations

import os
import signal
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


def shots_of(side: Side) -> list[str]:
    """The ids of the snapshots of `ct`, as they are listed."""
    return side.cli("vzctl", "snapshot-list", "ct", "-H", "-o", "uuid").split()


def taken(side: Side, *options: str) -> str:
    """Take a snapshot of `ct`; returns its id."""
    before = shots_of(side)
    side.cli("vzctl", "snapshot", "ct", *options)
    return next(each for each in shots_of(side) if each not in before)


def allocated(path: Path) -> int:
    """Bytes that a file system has given away."""
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def snapshots_go_along(nodes: TwoNodes, layout: str, pool: str = "") -> None:
    """With their tree, live and stopped; they take there what they take here, in the pool."""
    a, b = nodes.a, nodes.b
    nodes.lan_networks()
    a.create_busy("ct", "10.99.0.50", layout=layout)
    a.inside("ct", "dd if=/dev/urandom of=/root/data bs=1M count=24; echo one > /root/file; sync")
    first = taken(a, "--skip-suspend")
    a.inside("ct", "echo two > /root/file")
    second = taken(a, "--skip-suspend")
    a.inside("ct", "echo three > /root/file")
    tree = a.prlctl("snapshot-list", "ct", "-t")
    a.vzmigrate("--online", "b", "ct")
    assert (a.state("ct"), b.state("ct")) == ("", "running")
    assert b.inside("ct", "cat /root/file") == "three\n"
    assert b.prlctl("snapshot-list", "ct", "-t") == tree
    # a still has all of it, as *.migrated; three copies would be 48 MiB more
    if pool:
        assert allocated(b.root / pool) < allocated(a.root / pool) + (24 << 20)
    b.prlctl("stop", "ct", "--kill")
    b.cli("vzctl", "snapshot-switch", "ct", "--id", first)
    third = taken(b)  # below the first one, beside the second
    tree = b.prlctl("snapshot-list", "ct", "-t")
    b.vzmigrate("a", "ct")
    assert (a.state("ct"), b.state("ct")) == ("stopped", "")
    assert a.prlctl("snapshot-list", "ct", "-t") == tree
    for ident, text in ((second, "two"), (third, "one")):
        a.cli("vzctl", "snapshot-switch", "ct", "--id", ident)
        a.prlctl("mount", "ct")
        uuid = a.rows("ct")[0]["uuid"]
        assert (a.root / "vz/root" / uuid / "root/file").read_text() == f"{text}\n"
        a.prlctl("umount", "ct")
    ours = (".arriv", ".migr", "subvol.s", "overlay.")
    left = {path.name for path in home_of(a, "ct").iterdir() if path.name.startswith(ours)}
    assert not left - {"subvol.snapshots", "overlay.snapshots"}


@pytest.mark.long
def test_btrfs_with_snapshots(on_btrfs: TwoNodes) -> None:
    snapshots_go_along(on_btrfs, "btrfs", "vz/private")


@pytest.mark.long
def test_ploop_with_snapshots(two_nodes: TwoNodes) -> None:
    snapshots_go_along(two_nodes, "ploop", "vz/pool/default")


@pytest.mark.long
def test_qcow2_with_snapshots(two_nodes: TwoNodes) -> None:
    snapshots_go_along(two_nodes, "qcow2")


@pytest.mark.long
def test_overlay_with_snapshots(two_nodes: TwoNodes) -> None:
    snapshots_go_along(two_nodes, "overlay")


@pytest.mark.long
def test_overlay(two_nodes: TwoNodes) -> None:
    goes_there_and_back(two_nodes, "overlay")
    home = home_of(two_nodes.a, "ct")
    assert {path.name for path in home.iterdir() if path.name.startswith("overlay")} == {"overlay"}
    two_nodes.a.prlctl("stop", "ct", "--kill")


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
    first = taken(b, "--skip-suspend")
    b.inside("ct", "echo later > /data/file")
    b.vzmigrate("--online", "a", "ct")
    assert a.inside("ct", "cat /data/file") == "later\n"
    a.prlctl("stop", "ct", "--kill")
    assert len(a.prlctl("snapshot-list", "ct", "-H").splitlines()) == 1
    a.cli("vzctl", "snapshot-switch", "ct", "--id", first)
    a.prlctl("start", "ct")
    assert a.inside("ct", "cat /data/file") == "kept\n"
    a.prlctl("stop", "ct", "--kill")


@pytest.mark.long
@pytest.mark.parametrize("victim", ["giver", "taker"])
def test_death_while_snapshots_arrive(two_nodes: TwoNodes, victim: str) -> None:
    """It runs on here with its snapshots, nothing is left there, and the next move succeeds."""
    a, b = two_nodes.a, two_nodes.b
    two_nodes.lan_networks()
    a.create_busy("ct", "10.99.0.50", layout="ploop")
    a.inside("ct", "dd if=/dev/urandom of=/root/data bs=1M count=200; sync")
    ids = [taken(a, "--skip-suspend")]
    a.inside("ct", "dd if=/dev/urandom of=/root/data bs=1M count=200; sync")
    ids.append(taken(a, "--skip-suspend"))
    words = ("--online", f"--ssh=-F {two_nodes.ssh_config}", "b", "ct")
    with a.popen("vzmigrate", *words) as process:
        wait_for(lambda: list((b.root / "vz/pool/default").glob("*/.arriving/*")))
        os.kill((a if victim == "giver" else b).vzd(), signal.SIGKILL)
        process.communicate(timeout=200)
    wait_for(lambda: (a.state("ct"), b.state("ct")) == ("running", ""), 200)
    now = a.counter("ct")
    wait_for(lambda: a.counter("ct") > now)
    assert shots_of(a) == ids
    wait_for(lambda: not list((b.root / "vz/pool/default").glob("[!.]*")))
    a.vzmigrate("--online", "b", "ct")
    assert b.state("ct") == "running"
    assert shots_of(b) == ids
    b.prlctl("stop", "ct", "--kill")
