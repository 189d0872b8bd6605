"""`virsh migrate` of a virtual machine between two nodes: managed there, peer-to-peer back."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_migrate_machine import ADDRESS, Machine
from test_migrate_virsh import connection, place, virsh

from tinyguest import tiny_iso
from twonodes import Side, TwoNodes, busybox_root, busybox_tar, two_nodes

__all__ = ["busybox_root", "busybox_tar", "tiny_iso", "two_nodes"]

pytestmark = pytest.mark.requires(
    "root", "sshd", "program:qemu-system-x86_64", "program:qemu-img", "program:virsh"
)


def to(nodes: TwoNodes, side: Side) -> tuple[str, ...]:
    """The words that move a domain to SIDE: managed to b, peer-to-peer to a."""
    if side is nodes.b:
        return (connection(side), "--migrateuri", f"vzmigr://{place(nodes, side)}")
    return ("--p2p", f"vz+ssh://root@{place(nodes, side).replace('/?', '/system?')}")


def test_stopped_there_and_back(two_nodes: TwoNodes, tiny_iso: Path) -> None:
    """One that does not run goes with its disks; what is refused leaves it as it was."""
    Machine(two_nodes, tiny_iso)
    a, b = two_nodes.a, two_nodes.b
    b.prlctl("list")  # its vzd runs, and so does the endpoint
    uuid = virsh(a, "domuuid", "vm1")
    words = ("migrate", "--persistent", "vm1", *to(two_nodes, b))
    assert "--postcopy is not supported" in virsh(a, *words, "--postcopy", code=1)
    virsh(a, "checkpoint-create-as", "vm1", "monday", "--diskspec", "sda")
    virsh(a, *words)
    assert (a.state("vm1"), b.state("vm1")) == ("", "stopped")
    assert virsh(b, "checkpoint-list", "vm1", "--name") == "monday"
    assert virsh(b, "domblklist", "vm1").count("harddisk.hdd") == 1
    virsh(b, "migrate", "--persistent", "--dname", "site", "vm1", *to(two_nodes, a))
    assert (a.state("site"), b.state("vm1")) == ("stopped", "")
    assert virsh(a, "domuuid", "site") == uuid


@pytest.mark.long
def test_live_there_and_back(two_nodes: TwoNodes, tiny_iso: Path) -> None:
    """A connection from outside, its memory and its disk go on."""
    machine = Machine(two_nodes, tiny_iso)
    a, b = two_nodes.a, two_nodes.b
    b.prlctl("list")  # its vzd runs, and so does the endpoint
    machine.boot()
    machine.load()
    uuid = virsh(a, "domuuid", "vm1")
    with two_nodes.talk(ADDRESS, 7777) as talk:
        talk.exchange()
        live = ("migrate", "--live", "--persistent")
        virsh(a, *live, "--undefinesource", "vm1", *to(two_nodes, b))
        machine.at = b
        assert (a.state("vm1"), b.state("vm1")) == ("", "running")
        assert (virsh(b, "domuuid", "vm1"), virsh(b, "domstate", "vm1")) == (uuid, "running")
        talk.exchange()
        before = machine.count()
        virsh(b, *live, "--dname", "site", "vm1", *to(two_nodes, a))
        machine.at, machine.name = a, "site"
        assert (a.state("site"), b.state("vm1")) == ("running", "")
        assert virsh(a, "domuuid", "site") == uuid
        talk.exchange()
        assert machine.count() >= before
    machine.whole()
