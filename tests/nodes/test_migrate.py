"""Containers move between two nodes over a real ssh; what has to travel, travels."""

from __future__ import annotations

import pytest

from twonodes import Side, TwoNodes, busybox_root, busybox_tar, two_nodes, wait_for

__all__ = ["busybox_root", "busybox_tar", "two_nodes"]

pytestmark = pytest.mark.requires("root", "userns", "sshd")


def test_stopped(two_nodes: TwoNodes) -> None:
    a, b = two_nodes.a, two_nodes.b
    for layout in ("simfs", "ploop"):
        name = f"c-{layout}"
        uuid = a.create(name, layout=layout)
        a.inside(name, "echo kept > /root/file; ln -s /etc /root/link; mkfifo /fifo")
        a.prlctl("stop", name)
        out = a.vzmigrate("b", name)
        assert "has been migrated" in out
        assert a.state(name) == ""
        assert b.state(name) == "stopped"
        assert [row["uuid"] for row in b.rows(name)] == [uuid]
        b.prlctl("start", name)
        assert b.inside(name, "cat", "/root/file") == "kept\n"
        assert b.inside(name, "readlink", "/root/link") == "/etc\n"
        # and back again, while it runs: stopped for the last part only
        b.inside(name, "echo more >> /root/file")
        b.vzmigrate("a", name)
        assert b.state(name) == ""
        assert a.state(name) == "running"
        assert a.inside(name, "cat", "/root/file") == "kept\nmore\n"


@pytest.mark.requires("criu")
@pytest.mark.parametrize("layout", ["ploop", "simfs"])
def test_live(two_nodes: TwoNodes, layout: str) -> None:
    """Its processes, its files and a connection from outside go on."""
    a, b = two_nodes.a, two_nodes.b
    two_nodes.lan_networks()
    name = "live"
    a.create_busy(name, "10.99.0.50", layout=layout)
    with two_nodes.talk("10.99.0.50", 7777) as talk:
        talk.exchange()
        for here, there, target in ((a, b, "b"), (b, a, "a")):
            before = here.counter(name)
            out = here.vzmigrate("--online", target, name)
            assert "stood still" in out, out
            assert here.state(name) == ""
            assert there.state(name) == "running"
            talk.exchange()
            assert there.counter(name) >= before
            moved(there, name)
            there.inside(name, "touch /root/written")
        talk.exchange()


def moved(side: Side, name: str) -> None:
    """It counts on."""
    now = side.counter(name)
    wait_for(lambda: side.counter(name) > now)
