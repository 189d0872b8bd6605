"""A container's configuration as libvirt's domain XML (reference/seeds-and-peers.md, section 1.1).

    memory, vcpu, cputune       the limits
    filesystem                  disks: the root disk is "/"; type file (an image) or mount (a tree)
    interface type network      a card; the virtual network `host-routed` stands for venet
    console type pty            the console

What is given back when a client defines it again is read by `domaindefine`.
"""

from __future__ import annotations

import os
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from pyvz.gateway import domaintuning, notes
from pyvz.gateway.domain import Domain, is_machine
from pyvz.gateway.nodexml import memory, text_of
from pyvz.model.grammar_list import Address
from pyvz.model.grammar_net import NetIf
from pyvz.operations import diskmount
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.units import KIB, MIB, PAGE_SIZE, UNLIMITED
from pyvz.vm.spec import cpus_of, memory_of

INIT: Final = "/sbin/init"
ROUTED: Final = "host-routed"
DEFAULT_NETWORK: Final = "Bridged"


def memory_limit(domain: Domain) -> int:
    """Return the bytes of memory that it may use; those of the node where there is no limit."""
    if is_machine(domain):
        return memory_of(domain.config) * MIB
    pair = domain.config.memory.physpages
    limit = UNLIMITED if pair is None else pair.limit
    return memory() if limit >= UNLIMITED else min(limit * PAGE_SIZE, memory())


def processors(domain: Domain) -> int:
    """Return how many processors it has."""
    if is_machine(domain):
        return cpus_of(domain.config)
    return domain.config.cpu.cpus or os.cpu_count() or 1


def most_processors(domain: Domain) -> int:
    """Return how many processors it can have; a machine may have more than the node."""
    return max(processors(domain), os.cpu_count() or 1)


def headed(domain: Domain, *, live: bool) -> Element:
    """Return the beginning of a description: what containers and machines have in common."""
    config = domain.config
    top = Element("domain", type="vz")
    if live:
        top.set("id", str(domain.number))
    SubElement(top, "name").text = domain.env.name
    SubElement(top, "uuid").text = domain.env.uuid
    notes.add(top, domain)
    for tag in ("memory", "currentMemory"):
        SubElement(top, tag, unit="KiB").text = str(memory_limit(domain) // KIB)
    vcpu = SubElement(top, "vcpu", placement="static")
    vcpu.text = str(processors(domain))
    if config.cpu.mask and config.cpu.mask not in ("all", "auto"):
        vcpu.set("cpuset", config.cpu.mask)
    domaintuning.add(top, config)
    return top


def add_actions(top: Element, *, crash: str) -> None:
    """Add what follows when the inside powers off, reboots, or crashes."""
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", crash)):
        SubElement(top, f"on_{event}").text = action


def described(node: Node, domain: Domain, *, live: bool) -> str:
    """Return the description of a container; live: with what only a running one has."""
    top = headed(domain, live=live)
    system = SubElement(top, "os")
    SubElement(system, "type", arch=os.uname().machine).text = "exe"
    SubElement(system, "init").text = INIT
    SubElement(top, "clock", offset="utc")
    add_actions(top, crash="destroy")
    _devices(node, top, domain, live=live)
    return text_of(top)


def _devices(node: Node, top: Element, domain: Domain, *, live: bool) -> None:
    devices = SubElement(top, "devices")
    _root_disk(devices, domain)
    for disk in diskmount.disks_of(domain.env, domain.config):
        if disk.entry.mnt:
            _file_system(devices, os.fspath(disk.path), disk.entry.mnt)
    if domain.config.network.ip:
        routed = NetIf("venet0", network=ROUTED, ip=tuple(domain.config.network.ip))
        add_card(devices, routed, live=live)
    for card in domain.config.network.interfaces or ():
        if card.ifname != "venet0":
            add_card(devices, card, live=live)
    console = SubElement(devices, "console", type="pty")
    SubElement(console, "target", type="serial", port="0")
    _ = node


def _root_disk(devices: Element, domain: Domain) -> None:
    driver = storage.find(domain.env.home)
    if driver.capabilities(domain.env.home).disks:
        many = storage.many_disks(driver, domain.env.home)
        _file_system(devices, os.fspath(many.place(domain.env.home)), "/")
        return
    tree = SubElement(devices, "filesystem", type="mount", accessmode="passthrough")
    SubElement(tree, "source", dir=os.fspath(domain.env.home))
    SubElement(tree, "target", dir="/")


def _file_system(devices: Element, image: str, place: str) -> None:
    element = SubElement(devices, "filesystem", type="file", accessmode="passthrough")
    SubElement(element, "driver", type="ploop", format="ploop")
    SubElement(element, "source", file=image)
    SubElement(element, "target", dir=place)


def add_card(devices: Element, card: NetIf, *, live: bool) -> Element:
    """Add an interface, and return it; live: with the name that it has on the node."""
    element = SubElement(devices, "interface", type="network")
    if card.mac:
        SubElement(element, "mac", address=card.mac.lower())
    SubElement(element, "source", network=card.network or DEFAULT_NETWORK)
    if live and card.host_ifname:
        SubElement(element, "target", dev=card.host_ifname)
    SubElement(element, "guest", dev=card.ifname)
    for address in (*card.ip, *card.ip6):
        _address(element, address)
    if not card.connected:
        SubElement(element, "link", state="down")
    if live:
        SubElement(element, "alias", name=card.ifname)
    return element


def _address(element: Element, address: Address) -> None:
    family = "ipv6" if ":" in address.ip else "ipv4"
    found = SubElement(element, "ip", address=address.ip, family=family)
    if prefix := prefix_of(address):
        found.set("prefix", prefix)


def prefix_of(address: Address) -> str:
    """Return the length of an address's prefix, "" where none is said."""
    mask = address.mask
    if not mask or mask.isdigit():
        return mask
    return str(sum(bin(int(part)).count("1") for part in mask.split(".")))
