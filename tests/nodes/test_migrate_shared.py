"""Two nodes that see the same private areas: only who has the container changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from networld import run
from places import file_system
from twonodes import Side, TwoNodes, busybox_root, busybox_tar, two_nodes, wait_for

__all__ = ["busybox_root", "busybox_tar", "two_nodes"]

pytestmark = pytest.mark.requires("root", "userns", "sshd")
SMALL = 4 << 20  # bytes on the wire: no disk was among them


@pytest.fixture
def shared(two_nodes: TwoNodes) -> Iterator[TwoNodes]:
    """Both nodes with one /vz/private, as on NFS."""
    place = private_of(two_nodes.a)
    place.mkdir(mode=0o700)
    with seen_by_b(two_nodes):
        yield two_nodes


@pytest.fixture
def shared_xfs(two_nodes: TwoNodes) -> Iterator[TwoNodes]:
    """The same on a file system that shares blocks: images lie there, not in a pool of the node."""
    place = private_of(two_nodes.a)
    with file_system("xfs", place, 4 << 30):
        place.chmod(0o700)
        with seen_by_b(two_nodes):
            yield two_nodes


def private_of(side: Side) -> Path:
    return side.root / "vz/private"


@contextmanager
def seen_by_b(nodes: TwoNodes) -> Iterator[None]:
    """Have the other node see the same private areas, until its daemons have ended."""
    place = private_of(nodes.b)
    place.mkdir(mode=0o700)
    run("mount", "--bind", str(private_of(nodes.a)), str(place))
    try:
        yield
    finally:
        run("umount", str(place))


def migrate(here: Side, there: Side, *options: str) -> dict[str, int]:
    out = here.vzmigrate("--json", *options, there.name, "ct")
    result: dict[str, int] = json.loads(out.splitlines()[-1])["result"]
    return result


@pytest.mark.requires("criu")
def test_live_and_stopped(shared: TwoNodes) -> None:
    a, b = shared.a, shared.b
    shared.lan_networks()
    uuid = a.create_busy("ct", "10.99.0.50")
    home = a.root / "vz/private" / uuid
    inode = home.stat().st_ino
    with shared.talk("10.99.0.50", 7777) as talk:
        for here, there in ((a, b), (b, a)):
            before = here.counter("ct")
            result = migrate(here, there, "--online")
            assert result["rounds"] == []
            assert result["sent"] < SMALL
            assert (here.state("ct"), there.state("ct")) == ("", "running")
            talk.exchange()
            assert there.counter("ct") >= before
            assert home.stat().st_ino == inode
    # one that is stopped for it, and one that is stopped
    assert migrate(a, b)["sent"] < SMALL
    assert (a.state("ct"), b.state("ct")) == ("", "running")
    wait_for(lambda: b.counter("ct") >= before)
    b.prlctl("stop", "ct", "--kill")
    migrate(b, a, "--remove-area", "yes")
    assert (a.state("ct"), b.state("ct")) == ("stopped", "")
    assert [path.name for path in home.parent.iterdir()] == [uuid]
    a.prlctl("start", "ct")
    assert a.counter("ct") >= before


@pytest.mark.requires("criu")
@pytest.mark.long
def test_images_have_one_node_at_a_time(shared_xfs: TwoNodes) -> None:
    """One file system is never mounted by two kernels: it is stopped for the move."""
    a, b = shared_xfs.a, shared_xfs.b
    shared_xfs.lan_networks()
    a.create_busy("ct", "10.99.0.50", layout="ploop")
    before = a.counter("ct")
    assert "disk images" in a.vzmigrate("--online", "b", "ct", code=32)
    assert (a.state("ct"), b.state("ct")) == ("running", "")
    assert migrate(a, b)["sent"] < SMALL
    assert (a.state("ct"), b.state("ct")) == ("", "running")
    assert b.counter("ct") >= before
    b.prlctl("delete", "ct", "--force")  # it keeps the file system busy


def test_what_is_refused_on_shared_storage(shared: TwoNodes) -> None:
    """A copy, and a second one at the same place; nothing is changed."""
    a, b = shared.a, shared.b
    uuid = a.create("ct", start=False)
    assert "prlctl clone" in a.vzmigrate("--keep-src", "b", "ct", code=32)
    assert "exists" in a.vzmigrate("--nonsharedfs", "b", "ct", code=9)
    assert (a.state("ct"), b.state("ct")) == ("stopped", "")
    # with a place of its own it is copied
    a.vzmigrate("--nonsharedfs", "--new-private", "/vz/other/$VEID", "b", "ct")
    assert (a.state("ct"), b.state("ct")) == ("", "stopped")
    assert (b.root / "vz/other" / uuid).is_dir()
    assert (a.root / "vz/private" / f"{uuid}.migrated").is_dir()
    b.prlctl("start", "ct")
