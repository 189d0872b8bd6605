"""Containers move between two nodes over a real ssh; what has to travel, travels."""

from __future__ import annotations

import pytest

from twonodes import TwoNodes, busybox_root, busybox_tar, two_nodes

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
