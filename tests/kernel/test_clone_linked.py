"""Linked clones: nothing is copied, the list says whose they are, and both go their own ways."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import places
from homes import request
from ploops import mounted, ploop_node, read, write
from pyvz.errors import Unsupported
from pyvz.operations import clone, configure, provision, query
from pyvz.operations.configure import SetRequest
from pyvz.operations.node import Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
LINKED = clone.CloneOptions(linked=True)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with ploop_node(tmp_path) as made:
        yield made


def free(node: Node) -> int:
    os.sync()
    space = os.statvfs(node.paths.root)
    return space.f_bfree * space.f_frsize


def test_shares_everything_and_needs_nobody(node: Node) -> None:
    with mounted(node) as root:
        (root / "big").write_bytes(os.urandom(60 << 20))
    write(node, "one")
    before = free(node)
    copy = clone.clone(node, "ct1", "ct2", options=LINKED)
    assert before - free(node) < 16 << 20
    original = node.registry.resolve("ct1").uuid
    assert query.info(node, "ct2")["Linked clone of"] == f"{{{original}}}"
    assert "Linked clone of" not in query.info(node, "ct1")
    assert query.info(node, "ct2")["Home"] == str(copy.home)
    write(node, "two")
    provision.delete(node, "ct1")
    with mounted(node, "ct2") as root:
        assert (root / "file").read_text() == "one"
    clone.clone(node, "ct2", "ct3")
    assert "Linked clone of" not in query.info(node, "ct3")


def test_is_refused_where_it_would_be_a_copy(node: Node, tmp_path: Path) -> None:
    provision.create(node, request(name="plain", uuid=None, layout="simfs"))
    with pytest.raises(Unsupported):
        clone.clone(node, "plain", "other", options=LINKED)
    with places.file_system("ext4", node.paths.root / "elsewhere", 64 << 20) as elsewhere:
        spelled = f"/{elsewhere.relative_to(node.paths.root)}"
        options = clone.CloneOptions(destination=spelled, linked=True)
        with pytest.raises(Unsupported, match=r"share|another file system"):
            clone.clone(node, "ct1", "ct2", options=options)
        assert [entry.name for entry in elsewhere.iterdir()] == ["lost+found"]
    assert read(node) == ""


def test_disks_are_in_the_hardware(node: Node) -> None:
    env = node.registry.resolve("ct1")
    options = (("device-add", "hdd"), ("size", "64M"), ("mnt", "/data"))
    configure.set_options(node, "ct1", SetRequest("prlctl", options))
    configure.set_options(
        node, "ct1", SetRequest("prlctl", (("device-set", "hdd1"), ("disable", None)))
    )
    hardware = query.info(node, "ct1")["Hardware"]
    assert isinstance(hardware, dict)
    assert hardware["hdd0"] == {
        "enabled": True,
        "port": "scsi:0",
        "image": f"{env.home}/root.hdd",
        "type": "expanded",
        "size": "512Mb",
        "mnt": "/",
        "state": "connected",
        "subtype": "virtio-scsi",
    }
    assert hardware["hdd1"]["enabled"] is False
    assert hardware["hdd1"]["mnt"] == "/data"
    provision.create(node, request(name="plain", uuid=None, layout="simfs"))
    plain = node.registry.resolve("plain")
    hardware = query.info(node, "plain")["Hardware"]
    assert isinstance(hardware, dict)
    assert hardware["hdd0"]["real"] == str(plain.home)
    assert "size" not in hardware["hdd0"]
