"""A description that we gave out, changed in one place and defined again: it is so afterwards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]

pytestmark = [
    pytest.mark.requires("root", "program:virsh"),
    pytest.mark.usefixtures("host_network"),
]

CARD = re.compile(r"<interface.*?</interface>")
TITLED = "<title>T</title><description>D</description>"
# (what is replaced in the description of a running container, with what)
CHANGES = (
    (r"<name>ct1</name>", "<name>web</name>"),
    (r"(<uuid>.*</uuid>)", rf"\1{TITLED}<metadata><n:a xmlns:n='urn:n'>kept</n:a></metadata>"),
    (r'(<\w*emory unit="KiB">)\d+', r"\g<1>196608"),
    (r'(<vcpu placement="static")(>)\d+', r'\g<1> cpuset="0"\g<2>1'),
    (r"(</vcpu>)(<cputune>.*</cputune>)?", r"\1<cputune><shares>2000</shares></cputune>"),
    (
        r"</cputune>(<blkiotune>.*</blkiotune>)?",
        "<global_period>100000</global_period>"
        "<global_quota>50000</global_quota></cputune><blkiotune><weight>300</weight></blkiotune>",
    ),
    (r"</blkiotune>", '</blkiotune><numatune><memory mode="strict" nodeset="0"/></numatune>'),
    (r'address="10.99.5.5"', 'address="10.99.5.6"'),
    (r'address="10.99.6.5"', 'address="10.99.6.6"'),
    (r'<ip address="10.99.6.6"[^>]*>', ""),
    (r'(<guest dev="eth0" ?/>)', r'\1<ip address="10.99.6.7" family="ipv4" prefix="24"/>'),
    (r'<interface type="network"><source network="host-routed".*?</interface>', ""),
    (r'(prefix="24" ?/>)', r'\1<link state="down"/>'),
)


def flat(xml: str) -> str:
    """The same on one line, as the patterns want it."""
    return re.sub(r">\s+<", "><", xml.replace("'", '"')).replace(" />", "/>")


def plain(xml: str) -> str:
    """The same without the names that a program gives to namespaces."""
    named = re.sub(r' xmlns:\w+="urn:n"', "", flat(xml))
    return named.replace("ns0:", "n:")


def devices(xml: str) -> list[str]:
    return sorted(CARD.findall(xml))


def test_each_change_round_trips(world: World, tmp_path: Path) -> None:
    world.run("prlsrvctl", "net", "add", "inner")
    words = ("--ipadd", "10.99.5.5", "--device-add", "net", "--network", "inner")
    world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1")
    world.run("prlctl", "set", "ct1", *words, "--ipadd", "10.99.6.5/24")
    world.run("prlctl", "start", "ct1")
    virsh, file = Virsh(world), tmp_path / "domain.xml"
    uuid = virsh("domuuid", "ct1")
    assert "net.count=2" in virsh("domstats", "--interface", uuid)
    for card in ("venet0", re.findall(r"[0-9a-f:]{17}", virsh("domiflist", uuid))[-1]):
        assert re.search(r"rx_packets \d+", virsh("domifstat", uuid, card))
    for pattern, text in CHANGES:
        before = flat(virsh("dumpxml", "--inactive", uuid))
        wanted, count = re.subn(pattern, text, before)
        assert count, (pattern, before)
        file.write_text(wanted)
        virsh("define", str(file))
        after = virsh("dumpxml", "--inactive", uuid)
        there, asked = plain(after), plain(wanted)
        assert devices(there) == devices(asked), pattern
        assert CARD.sub("", there) == CARD.sub("", asked), pattern
        file.write_text(after)
        virsh("define", str(file))  # and as it is, it changes nothing
        assert virsh("dumpxml", "--inactive", uuid) == after
    assert world.run("prlctl", "status", "web").split()[-1] == "running"
    refused(virsh, uuid, file)
    virsh("destroy", uuid)
    world.run("prlctl", "delete", uuid)
    world.run("prlsrvctl", "net", "del", "inner")


def refused(virsh: Virsh, uuid: str, file: Path) -> None:
    """Nothing of a description is taken that holds a part which cannot be kept or changed."""
    before = virsh("dumpxml", uuid)
    for pattern, text, words in (
        ("</vcpu>", "</vcpu><memtune><hard_limit>9</hard_limit></memtune>", "<memtune>"),
        ("</devices>", "<hostdev mode='subsystem' type='usb'/></devices>", "<devices/hostdev>"),
        ("exe</type>", "hvm</type>", "supported for a virtual machine"),
        ("/sbin/init", "/bin/sh", "<os/init>"),
        ('<target dir="/"', '<target dir="/other"', "The filesystems of web"),
    ):
        wanted = before.replace("<name>web", "<name>other").replace(pattern, text)
        assert wanted.count(text) == 1
        file.write_text(wanted)
        assert words in virsh("define", str(file), code=1)
        assert virsh("dumpxml", uuid) == before
