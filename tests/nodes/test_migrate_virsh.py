"""`virsh migrate` of containers between two nodes: both forms, its job, its events, refusals."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time

import pytest

from twonodes import Side, TwoNodes, busybox_root, busybox_tar, two_nodes, wait_for

__all__ = ["busybox_root", "busybox_tar", "two_nodes"]

pytestmark = pytest.mark.requires("root", "userns", "sshd", "program:virsh")


def connection(side: Side) -> str:
    """The URI of a node's own socket."""
    return f"vz+unix:///system?socket={side.root}/run/libvirt/virtvzd-sock"


def argv(side: Side, *words: str) -> list[str]:
    return ["env", "LC_ALL=C", "HOME=/nonexistent", "virsh", "-q", "-c", connection(side), *words]


def virsh(side: Side, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        argv(side, *words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return (done.stdout if code == 0 else done.stderr).strip()


def place(nodes: TwoNodes, side: Side) -> str:
    """The end of a URI by which the other node reaches SIDE."""
    return f"{side.address}/?keyfile={nodes.root}/key&known_hosts={nodes.root}/known_hosts"


@pytest.fixture
def nodes(two_nodes: TwoNodes) -> TwoNodes:
    for side in (two_nodes.a, two_nodes.b):
        side.prlctl("list")  # its vzd runs, and so does the endpoint
    return two_nodes


@pytest.mark.requires("criu")
def test_live_there_and_back(nodes: TwoNodes) -> None:
    """Managed there, peer-to-peer back, while it counts; both nodes tell of it."""
    a, b = nodes.a, nodes.b
    nodes.lan_networks()
    uuid = a.create_busy("web", "10.99.0.50")
    watcher = subprocess.Popen(
        [*argv(b, "event", "--all", "--loop", "--timeout", "900")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watcher.stdout is not None
    try:
        b.create("poke", start=False)
        while not select.select([watcher.stdout], [], [], 0.1)[0]:  # nobody is told when it listens
            b.prlctl("set", "poke", "--description", f"{time.monotonic()}")
        before = a.counter("web")
        virsh(a, "migrate", "--live", "--persistent", "--undefinesource", "web", connection(b),
              "--migrateuri", f"vzmigr://{place(nodes, b)}")  # fmt: skip
        assert (a.state("web"), b.state("web")) == ("", "running")
        assert virsh(b, "domuuid", "web") == uuid
        assert virsh(b, "domstate", "web") == "running"
        assert b.counter("web") >= before
        assert "failed to get domain" in virsh(a, "dominfo", "web", code=1)
        wanted = ["Defined Added", "Started Migrated"]
        while wanted:
            line = watcher.stdout.readline()
            assert line, f"no event {wanted[0]}"
            if f"'lifecycle' for domain 'web': {wanted[0]}" in line:
                wanted.pop(0)
    finally:
        watcher.terminate()
        watcher.wait(120)
        watcher.stdout.close()
    virsh(b, "migrate", "--live", "--p2p", "--dname", "site", "web",
          f"vz+ssh://root@{place(nodes, a).replace('/?', '/system?')}")  # fmt: skip
    assert (a.state("site"), b.state("web")) == ("running", "")
    assert virsh(a, "domuuid", "site") == uuid
    now = a.counter("site")
    wait_for(lambda: a.counter("site") > now)


def test_stopped_and_refused(nodes: TwoNodes) -> None:
    """What is refused is named and leaves all as it was; a stopped one goes like any other."""
    a, b = nodes.a, nodes.b
    a.create("ct", start=False)
    there = ("ct", connection(b), "--migrateuri", f"vzmigr://{place(nodes, b)}")
    assert "offline migration is not" in virsh(
        a, "migrate", "--offline", "--persistent", *there, code=1
    )
    for option in ("--suspend", "--unsafe", "--postcopy", "--auto-converge", "--abort-on-error"):
        words = ("migrate", "--persistent", option, *there)
        assert f"{option} is not supported" in virsh(a, *words, code=1)
    go = ("migrate", "--persistent", *there)
    assert "bandwidth" in virsh(a, *go, "--bandwidth", "10", code=1)
    xml = nodes.root / "other.xml"
    xml.write_text(virsh(a, "dumpxml", "ct").replace("</name>", "</name><title>x</title>"))
    assert "(--xml) is not supported" in virsh(a, *go, "--xml", os.fspath(xml), code=1)
    wrong = ("migrate", "--persistent", "ct", connection(b), "--migrateuri")
    assert "no URI of migration" in virsh(a, *wrong, "tcp://somewhere", code=1)
    assert "Cannot connect" in virsh(a, *wrong, f"vzmigr://{b.address}:9", code=1)
    b.create("ct", start=False)
    assert "already" in virsh(a, *go, code=1)
    b.prlctl("delete", "ct")
    assert (a.state("ct"), b.state("ct")) == ("stopped", "")
    virsh(a, *go)
    assert (a.state("ct"), b.state("ct")) == ("", "stopped")


def test_job_is_seen_and_called_off(nodes: TwoNodes) -> None:
    """While it goes: domjobinfo tells, domjobabort ends it, and it is here as it was."""
    a, b = nodes.a, nodes.b
    a.create("ct", start=False)
    assert re.match(r"Job type: +None", virsh(a, "domjobinfo", "ct"))
    assert "no job is active" in virsh(a, "domjobabort", "ct", code=1)
    assert b.sshd is not None
    b.sshd.send_signal(signal.SIGSTOP)  # the cable is there, and nobody answers
    try:
        goal = f"vz+ssh://{place(nodes, b).replace('/?', '/system?')}"
        words = ("migrate", "--persistent", "--p2p", "ct", goal)
        moving = subprocess.Popen(
            argv(a, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        wait_for(lambda: "Outgoing migration" in virsh(a, "domjobinfo", "ct"))
        virsh(a, "domjobabort", "ct")
        told, _ = moving.communicate(timeout=280)
    finally:
        b.sshd.send_signal(signal.SIGCONT)
    assert moving.returncode == 1
    assert "called off" in told
    assert (a.state("ct"), b.state("ct")) == ("stopped", "")
