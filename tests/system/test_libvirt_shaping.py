"""`virsh domiftune` on a node that shapes traffic: what it sets is in force, and shown again."""

from __future__ import annotations

import re

import pytest
from test_libvirt import Virsh

from networld import NetWorld, busybox_root, busybox_tar
from networld import networld as world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("root", "program:virsh", "program:tc")


def htb(world: NetWorld) -> str:
    """The classes of traffic of the node, in and out."""
    cards = re.findall(r"qdisc htb \S+ dev (\S+)", world.at(world.node, "tc", "qdisc"))
    assert len(cards) >= 2, cards
    return "".join(world.at(world.node, "tc", "class", "show", "dev", card) for card in cards)


def test_domiftune(world: NetWorld) -> None:
    (world.root / "etc/vz/vz.conf").write_text(
        'VELAYOUT="simfs"\nTRAFFIC_SHAPING="yes"\nBANDWIDTH="up0:1000000"\n'
        'TOTALRATE="*:1:200000"\nRATE="*:1:1000"\n'
    )
    world.create("web", "--ipadd", "10.77.0.1")
    virsh = Virsh(world)  # type: ignore[arg-type]  # it has a root as well
    tune = ("domiftune", "web", "venet0")
    assert re.search(r"inbound.average *: 0", virsh(*tune))
    free = htb(world)
    assert "2400Kbit" not in free
    virsh(*tune, "--inbound", "300", "--outbound", "300", "--live")
    told = virsh(*tune)
    for way in ("inbound", "outbound"):
        assert re.search(rf"{way}.average *: 300$", told, re.MULTILINE), told
    # The bound is that of both directions: each has a class that may take no more.
    leaves = re.findall(r"1:11 .*rate 2400Kbit ceil 2400Kbit", htb(world))
    assert len(leaves) == 2, htb(world)
    conf = (world.root / "etc/vz/conf" / f"{world.uuid('web')}.conf").read_text()
    assert 'RATE="*:1:2400"' in conf
    assert "both directions" in virsh(*tune, "--inbound", "100", code=1)
    assert "cannot be set" in virsh(*tune, "--inbound", "100,200", "--outbound", "100", code=1)
    assert re.search(r"inbound.average *: 300$", virsh(*tune), re.MULTILINE)
    virsh(*tune, "--inbound", "0", "--outbound", "0", "--config")
    assert re.search(r"inbound.average *: 0", virsh(*tune))
    assert htb(world) == free
