"""Containers move between two nodes over a real ssh; what has to travel, travels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

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
@pytest.mark.parametrize("layout", ["ploop", pytest.param("simfs", marks=pytest.mark.long)])
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


@pytest.mark.requires("criu")
@pytest.mark.long
def test_what_cannot_be_removed_here_is_told_and_goes_later(two_nodes: TwoNodes) -> None:
    """Somebody holds its disk: it runs there, nobody can start what is left, and that goes."""
    a, b = two_nodes.a, two_nodes.b
    two_nodes.lan_networks()
    name = "held"
    a.create_busy(name, "10.99.0.50", layout="ploop")
    argv = ["unshare", "--mount", "--propagation", "private", "sleep", "600"]
    with subprocess.Popen(argv) as holder:
        try:
            wait_for(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n")
            out = a.vzmigrate("--online", "--json", "b", name)
            result = json.loads(out.splitlines()[-1])["result"]
            assert "could not be removed yet" in result["problem"]
            assert (result["started"], b.state(name)) == (True, "running")
            a.prlctl("start", name, code=None)
            assert a.state(name) != "running"
        finally:
            holder.kill()
    wait_for(lambda: a.state(name) == "")
    assert b.state(name) == "running"


@pytest.mark.requires("criu")
@pytest.mark.long
@pytest.mark.usefixtures("userfaultfd_switch")
def test_post_copy(two_nodes: TwoNodes) -> None:
    """It runs there before its memory is there; nothing of it stays here."""
    a, b = two_nodes.a, two_nodes.b
    two_nodes.lan_networks()
    name = "late"
    uuid = a.create_busy(name, "10.99.0.50")
    with two_nodes.talk("10.99.0.50", 7777) as talk:
        for here, there, target in ((a, b, "b"), (b, a, "a")):
            before = here.counter(name)
            assert "stood still" in here.vzmigrate("--post-copy", target, name)
            assert (here.state(name), there.state(name)) == ("", "running")
            talk.exchange()
            assert there.counter(name) >= before
            moved(there, name)
            assert not (there.root / "run/pyvz/images" / uuid).exists()
            assert not list((there.root / "var/lib/pyvz/journal").glob("*"))


@pytest.mark.requires("criu", "mem_track")
def test_memory_goes_in_rounds(two_nodes: TwoNodes) -> None:
    """Where the kernel tracks pages, what stands still is what changed last."""
    a, b = two_nodes.a, two_nodes.b
    two_nodes.lan_networks()
    name = "rounds"
    a.create_busy(name, "10.99.0.50")
    with two_nodes.talk("10.99.0.50", 7777) as talk:
        for here, there, target in ((a, b, "b"), (b, a, "a")):
            before = here.counter(name)
            said = here.vzmigrate("--online", "--json", target, name)
            result = json.loads(said.splitlines()[-1])["result"]
            print(result)
            assert result["precopy"] == ""
            assert len(result["memory_rounds"]) > 1
            assert result["memory_rounds"][1] < result["memory_rounds"][0] / 2
            assert (here.state(name), there.state(name)) == ("", "running")
            talk.exchange()
            assert there.counter(name) >= before
            moved(there, name)
            assert not list((here.root / "run/pyvz/images").glob("*"))
            assert not list((there.root / "run/pyvz/images").glob("*"))


def moved(side: Side, name: str) -> None:
    """It counts on."""
    now = side.counter(name)
    wait_for(lambda: side.counter(name) > now)


@pytest.mark.requires("criu")
@pytest.mark.parametrize(
    "victim", ["giver", pytest.param("taker", marks=pytest.mark.long),
               pytest.param("cable", marks=pytest.mark.long)]
)  # fmt: skip
def test_a_fetch_that_breaks_at_the_decision_settles_itself(
    two_nodes: TwoNodes, victim: str
) -> None:
    """The node that was asked for it has no key for the other one, which tells it."""
    a, b = two_nodes.a, two_nodes.b
    two_nodes.lan_networks()
    a.create_busy("ct", "10.99.0.50")
    before = a.counter("ct")
    struck = False
    giver, taker = b, a
    while not struck:
        giver, taker = taker, giver
        process = taker.popen(
            "prlctl", "migrate", "--ssh", f"-F {two_nodes.ssh_config}", f"{giver.name}/ct",
            "localhost",
        )  # fmt: skip
        with process:
            notes = taker.root / "var/lib/pyvz/migration"
            struck = caught(lambda notes=notes: list(notes.glob("*.pull")), process.poll)
            if struck and victim == "cable":
                two_nodes.cut()
            elif struck:
                os.kill((giver if victim == "giver" else taker).vzd(), signal.SIGKILL)
            process.communicate(timeout=280)
            two_nodes.cut(cut=False)

    def settled() -> bool:
        states = (giver.state("ct"), taker.state("ct"))
        # It may have gone from the one to the other between the two questions.
        assert states != ("running", "running") or giver.state("ct") != "running"
        return sorted(states) == ["", "running"] and not list(notes.glob("*.pull"))

    wait_for(settled, 200)
    now = a if a.state("ct") else b
    assert now.counter("ct") >= before
    moved(now, "ct")
    for side in (a, b):
        wait_for(lambda side=side: not journals(side))
        wait_for(lambda side=side: not list((side.root / "var/lib/pyvz/migration").glob("*")))


def caught(happened: Callable[[], object], ended: Callable[[], object]) -> bool:
    """Wait for a short moment to come, and return in it; False: it went by unseen."""
    deadline = time.monotonic() + 120
    while not happened():
        if ended() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return True


def journals(side: Side) -> list[Path]:
    return list((side.root / "var/lib/pyvz/journal").glob("*"))


def test_what_is_refused_and_what_is_asked_for(two_nodes: TwoNodes) -> None:
    """Exit codes; nothing is changed by what is refused.  Copies, other names, pulls."""
    a, b = two_nodes.a, two_nodes.b
    uuid = a.create("ct", "--ipadd", "10.77.0.1", start=False)
    assert "no container" in a.vzmigrate("b", code=1).lower()
    a.vzmigrate("b", "nobody", code=10)
    assert "this node" in a.vzmigrate("a", "ct", code=1)
    assert "Cannot connect" in a.vzmigrate("10.99.0.77", "ct", "-t", "5", code=4)
    a.vzmigrate("root:secret@b", "ct", code=32)
    assert "can be migrated" in a.vzmigrate("--dry-run", "b", "ct")
    assert a.state("ct") == "stopped"
    b.create("ct", start=False)
    assert "already" in a.vzmigrate("b", "ct", code=45)
    b.prlctl("set", "ct", "--ipadd", "10.77.0.1", "--name", "other")
    assert "10.77.0.1" in a.vzmigrate("b", "ct", code=12)
    b.prlctl("delete", "other")
    # a copy, under another name
    a.vzmigrate("--keep-src", "--new-name", "copy", "b", "ct")
    assert (a.state("ct"), b.state("copy")) == ("stopped", "stopped")
    assert b.rows("copy")[0]["uuid"] != uuid
    b.prlctl("delete", "copy")
    # fetched by the other node, then fetched back
    b.prlctl("migrate", "--ssh", f"-F {two_nodes.ssh_config}", "a/ct", "localhost")
    assert (a.state("ct"), b.state("ct")) == ("", "stopped")
    assert (a.root / f"etc/vz/conf/{uuid}.conf.migrated").is_symlink()
    a.prlctl("migrate", "--remove-src", "--ssh", f"-F {two_nodes.ssh_config}", "b/ct", "localhost")
    assert (a.state("ct"), b.state("ct")) == ("stopped", "")
    assert not list((b.root / "vz/private").glob("*"))
    for side in (a, b):
        assert not list((side.root / "var/lib/pyvz/migration").glob("*"))
