"""Backups kept on another node, over a real sshd: made, listed, restored, checked, removed."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from networld import end
from twonodes import Side, TwoNodes, busybox_root, busybox_tar, two_nodes

__all__ = ["busybox_root", "busybox_tar", "two_nodes"]

pytestmark = pytest.mark.requires("root", "userns", "sshd")
TAG = re.compile(r"\{[0-9a-f-]{36}\}(\.\d+)?")


def ready(world: TwoNodes) -> tuple[Side, Side, str]:
    """Node a knows node b by its ssh configuration; a container with something in it."""
    a, b = world.a, world.b
    shutil.copy(world.ssh_config, a.root / "etc/vz/ssh_config")
    a.create("ct1")
    a.inside("ct1", "echo one > /file; head -c 3000000 /dev/urandom > /big; chown 1000 /big")
    return a, b, b.address


def tag_of(said: str) -> str:
    found = TAG.search(said)
    assert found is not None, said
    return found[0]


def test_there_and_back(two_nodes: TwoNodes) -> None:
    a, b, address = ready(two_nodes)
    digest = a.inside("ct1", "md5sum < /big")
    full = tag_of(a.prlctl("backup", "ct1", "-s", f"root@{address}"))
    a.inside("ct1", "echo two > /file")
    second = tag_of(a.prlctl("backup", "ct1", "--storage", address, "--description", "later"))
    assert second == f"{full}.2"
    assert not (a.root / "vz/backups").exists()
    rows = a.prlctl("backup-list", "ct1", "-s", address, "-H").split()
    assert rows.count(full) == rows.count(second) == 1
    assert full in b.prlctl("backup-list", "-H"), "the other node sees them as its own"
    assert b.prlctl("backup-verify").strip() == "No damage was found."
    sizes = [int(line.split()[-1]) for line in b.prlctl("backup-list", "-H").splitlines()]
    assert sizes[1] < sizes[0] // 5
    a.prlctl("restore", "-t", full, "-n", "old", "-s", address)
    a.prlctl("start", "old")
    assert a.inside("old", "cat /file") == "one\n"
    assert a.inside("old", "md5sum < /big; stat -c %u /big") == f"{digest}1000\n"
    a.prlctl("stop", "ct1", "--kill")
    a.prlctl("restore", "ct1", "-s", address)
    a.prlctl("start", "ct1")
    assert a.inside("ct1", "cat /file") == "two\n"
    shown = a.prlctl("backup-mount", "-t", full, "-s", address).split()[-1]
    assert (Path(shown) / "file").read_text() == "one\n"
    a.prlctl("backup-umount", "-t", full)
    a.prlctl("backup-delete", "-t", full, "-s", address)
    assert b.prlctl("backup-list", "-H") == ""
    assert not list((b.root / "vz/backups/chunks").glob("*/*"))


@pytest.mark.long
def test_another_directory_and_ploop(two_nodes: TwoNodes) -> None:
    a, b, address = ready(two_nodes)
    where = ("-s", address, "--backup-path", f"{b.root}/kept")
    a.cli("vzctl", "create", "img", "--ostemplate", "busybox-1", "--layout", "ploop",
          "--diskspace", "512M")  # fmt: skip
    a.prlctl("start", "img")
    a.inside("img", "echo one > /file")
    full = tag_of(a.prlctl("backup", "img", *where))
    a.inside("img", "echo two > /file")
    tag_of(a.prlctl("backup", "img", *where))
    a.prlctl("delete", "img", "--force")
    a.prlctl("restore", "img", *where)
    a.prlctl("start", "img")
    assert a.inside("img", "cat /file") == "two\n"
    assert full in b.prlctl("backup-list", "-H", "--backup-path", f"{b.root}/kept")


def test_what_cannot_be_reached_is_said(two_nodes: TwoNodes) -> None:
    a, b, address = ready(two_nodes)
    said = a.prlctl("backup", "ct1", "-s", "10.99.0.77", code=255)
    assert "Cannot connect to 10.99.0.77" in said
    said = a.prlctl("backup", "ct1", "-s", f"root:secret@{address}", code=255)
    assert "password" in said
    assert "secret" not in said
    said = a.prlctl("backup", "ct1", "-s", "-oProxyCommand=touch", code=None)
    assert "is not the address of a node" in said
    # As a shell ends that finds no such program; one of the machine's own may be in the PATH.
    (b.root / "bin/vzmdest").unlink()
    (b.root / "bin/vzmdest").write_text("#!/bin/sh\necho sh: vzmdest: not found >&2\nexit 127\n")
    (b.root / "bin/vzmdest").chmod(0o755)
    assert "has no vzmdest" in a.prlctl("backup", "ct1", "-s", address, code=255)
    (a.root / "etc/vz/ssh_config").unlink()
    said = a.prlctl("backup", "ct1", "-s", address, code=255)
    assert "ost key verification failed" in said, "nothing is trusted unseen"
    assert a.state("ct1") == "running"


@pytest.mark.long
@pytest.mark.parametrize("who", ["ssh", "vzd"])
def test_the_connection_breaks(two_nodes: TwoNodes, who: str) -> None:
    """No backup was made, nothing is locked, and the next one works."""
    a, b, address = ready(two_nodes)
    a.inside("ct1", "head -c 60000000 /dev/urandom > /large")
    making = a.popen("prlctl", "backup", "ct1", "-s", address)
    deadline = time.monotonic() + 200
    while not list((b.root / "vz/backups").glob("temporary/*/*")):
        assert time.monotonic() < deadline
        assert making.poll() is None
        time.sleep(0.02)
    if who == "vzd":
        end(b.vzd(), signal.SIGKILL)
    else:
        two_nodes.cut()
    said, _ = making.communicate(timeout=280)
    assert making.returncode == 255, said
    assert "onnection" in said
    two_nodes.cut(cut=False)
    assert b.prlctl("backup-list", "-H") == ""
    deadline = time.monotonic() + 200
    while True:  # the far side lets go when it notices
        try:
            tag_of(a.prlctl("backup", "ct1", "-s", address))
            break
        except AssertionError:
            assert time.monotonic() < deadline
            time.sleep(1)
    [row] = json.loads(a.prlctl("list", "-j", "ct1"))
    assert row["status"] == "running"
