"""What is seen of the inside of a guest, in the protocol's words: addresses, file systems, facts.

Of a virtual machine its agent tells it, so every value may be anything: texts are cut and cleaned,
numbers are made to fit, lists are short.  Of a container the node knows it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_interface
from typing import Any, Final

from pyvz.errors import VZError
from pyvz.gateway import domainxml, failure, xdr
from pyvz.gateway.domain import Domain, is_machine
from pyvz.gateway.failure import Failure
from pyvz.gateway.xdr import Typed
from pyvz.linux.mount import mounts
from pyvz.linux.netlink import Netlink
from pyvz.network import dhcp
from pyvz.network.base import card_mac
from pyvz.operations import diskmount, execute, machineguest
from pyvz.operations.node import Node
from pyvz.operations.virtualnet import states
from pyvz.vm.guestword import MOST, number, rows, text

Key = dict[str, Any]

LEASE, AGENT, ARP = 0, 1, 2  # where addresses are known from
USERS, OS, TIMEZONE, HOSTNAME, FILESYSTEM, _, INTERFACES = (1 << bit for bit in range(7))

# name of a fact -> the agent's field
_OS_FIELDS: Final = {
    "id": "id", "name": "name", "pretty-name": "pretty-name", "version": "version",
    "version-id": "version-id", "machine": "machine", "variant": "variant",
    "variant-id": "variant-id", "kernel-release": "kernel-release",
    "kernel-version": "kernel-version",
}  # fmt: skip


def asked(node: Node, found: Domain, command: str, arguments: Key | None = None) -> Any:  # noqa: ANN401
    """Return what a machine's agent answers; raises NoAgent, AgentError."""
    with machineguest.agent(node, found.env) as talk:
        return talk.call(command, arguments, timeout=60.0)


# -- addresses ----------------------------------------------------------------------------------


def interfaces(node: Node, found: Domain, source: int) -> list[Key]:
    """Return the structures `domain_interface` of a guest, as one of the sources knows them."""
    if source == AGENT:
        return _of_agent(node, found) if is_machine(found) else _of_container(node, found)
    addresses = _given(node, found) if source == LEASE else _neighbours(found)
    cards = _cards(found)
    return [
        _interface(name, mac, addresses.get(mac, [])) for mac, name in cards.items()
        if addresses.get(mac)
    ]  # fmt: skip


def _of_agent(node: Node, found: Domain) -> list[Key]:
    answer = asked(node, found, "guest-network-get-interfaces")
    return [
        _interface(
            text(each.get("name", "")), text(each.get("hardware-address", "")),
            [
                (text(one.get("ip-address", "")), number(one.get("prefix"), most=128))
                for one in rows(each.get("ip-addresses"))
            ],
        )
        for each in rows(answer)
    ]  # fmt: skip


def _of_container(node: Node, found: Domain) -> list[Key]:
    """Return what is in the container's network namespace."""
    with node.runtime.network(found.env.uuid) as access, Netlink(access.netlink) as netlink:
        links, addresses = netlink.links(), netlink.addresses()
    shown: dict[int, list[tuple[str, int]]] = {}
    for each in addresses:
        own = ip_interface(each.address)
        shown.setdefault(each.index, []).append((str(own.ip), own.network.prefixlen))
    return [_interface(link.name, link.mac, shown.get(link.index, ())) for link in links]


def _given(node: Node, found: Domain) -> dict[str, list[tuple[str, int]]]:
    """Return hardware address -> addresses that the node gave: configured ones and leases."""
    answer: dict[str, list[tuple[str, int]]] = {}
    networks = {each.network.name: each.network for each in states(node)}
    routed = [(each.ip, 0) for each in found.config.network.ip or ()]
    if routed:
        answer[""] = routed
    for card in found.config.network.interfaces or ():
        mac = _mac(found, card.mac, card.ifname)
        answer.setdefault(mac, []).extend((each.ip, 0) for each in (*card.ip, *card.ip6))
        network = networks.get(card.network)
        for lease in dhcp.leases(dhcp.files(node.paths, network.uuid)) if network else ():
            if lease.mac.lower() == mac:
                answer[mac].append((lease.address, 0))
    return answer


def _neighbours(found: Domain) -> dict[str, list[tuple[str, int]]]:
    """Return hardware address -> addresses that the node has talked to (proc_net(5): arp)."""
    answer: dict[str, list[tuple[str, int]]] = {}
    with open("/proc/net/arp", encoding="ascii", errors="replace") as file:
        for words in (line.split() for line in file):
            if len(words) > 3 and words[3].lower() in _cards(found):
                answer.setdefault(words[3].lower(), []).append((words[0], 0))
    return answer


def _cards(found: Domain) -> dict[str, str]:
    """Return hardware address -> name; of a container's routed card, "" -> venet0."""
    cards = found.config.network.interfaces or ()
    named = {_mac(found, card.mac, card.ifname): card.host_ifname or card.ifname for card in cards}
    return named if is_machine(found) else {"": "venet0", **named}


def _mac(found: Domain, mac: str, name: str) -> str:
    return (mac or card_mac(found.env.uuid, name)).lower()


def _interface(name: str, mac: str, addresses: Iterable[tuple[str, int]]) -> Key:
    shown = []
    for address, prefix in addresses:
        try:
            ip = ip_address(address)
        except ValueError:
            continue
        full = prefix or ip.max_prefixlen
        shown.append({"type": int(ip.version == 6), "addr": str(ip), "prefix": full})
    return {"name": name, "hwaddr": mac or None, "addrs": shown}


# -- file systems -------------------------------------------------------------------------------


def file_systems(node: Node, found: Domain) -> list[Key]:
    """Return the structures `domain_fsinfo` of a guest."""
    if is_machine(found):
        return [
            {
                "mountpoint": text(each.get("mountpoint", "")), "name": text(each.get("name", "")),
                "fstype": text(each.get("type", "")),
                "dev_aliases": [text(one.get("dev", "")) for one in rows(each.get("disk"))],
            }
            for each in rows(asked(node, found, "guest-get-fsinfo"))
        ]  # fmt: skip
    disks = [each.entry.mnt for each in diskmount.disks_of(found.env, found.config)]
    kinds = _kinds(node, found)
    return [
        {"mountpoint": place, "name": "root" if place == "/" else place,
         "fstype": text(kinds.get(place, "unknown")), "dev_aliases": []}
        for place in ("/", *filter(None, disks))
    ]  # fmt: skip


def _kinds(node: Node, found: Domain) -> dict[str, str]:
    """Return mount point -> type of the file system inside a container."""
    init = node.runtime.running(found.env.uuid).get(found.env.uuid)
    if init is None:
        return {}
    with suppress(OSError):
        return {entry.target: entry.fstype for entry in mounts(pid=init.pid)}
    return {}


# -- facts --------------------------------------------------------------------------------------


def facts(node: Node, found: Domain, types: int) -> list[Typed]:
    """Return what guestinfo shows, of the kinds in TYPES (0: all that can be had)."""
    makers = {
        USERS: _users, OS: _os, TIMEZONE: _timezone, HOSTNAME: _hostname,
        FILESYSTEM: _file_systems, INTERFACES: _interfaces,
    }  # fmt: skip
    shown: list[Typed] = []
    for kind, maker in makers.items():
        if types & kind:
            shown += maker(node, found)
        elif not types:
            with suppress(VZError):  # an agent need not know every command
                shown += maker(node, found)
    return shown


def _string(name: str, value: object) -> Typed:
    return Typed(name, xdr.STRING, text(value))


def _count(name: str, value: int) -> Typed:
    return Typed(name, xdr.UINT, value)


def _users(node: Node, found: Domain) -> Iterator[Typed]:
    if not is_machine(found):
        return
    users = rows(asked(node, found, "guest-get-users"))
    yield _count("user.count", len(users))
    for index, each in enumerate(users):
        yield _string(f"user.{index}.name", each.get("user", ""))
        login = each.get("login-time", 0)
        when = int(login * 1000) if isinstance(login, int | float) and 0 <= login < 1e12 else 0
        yield Typed(f"user.{index}.login-time", xdr.ULLONG, when)


def _os(node: Node, found: Domain) -> Iterator[Typed]:
    if is_machine(found):
        answer = asked(node, found, "guest-get-osinfo")
        answer = answer if isinstance(answer, dict) else {}
    else:
        answer = _release(node, found)
    for name, field in _OS_FIELDS.items():
        if field in answer:
            yield _string(f"os.{name}", answer[field])


def _release(node: Node, found: Domain) -> Key:
    """Return os-release(5) of a container, and the kernel, in the agent's words."""
    done = execute.run(node, found.env, ["cat", "/etc/os-release"], timeout=30.0)
    pairs = (line.partition("=") for line in done.output.splitlines()[:MOST])
    names = {name.lower().replace("_", "-"): value.strip("\"'") for name, _, value in pairs}
    kernel = platform.uname()
    return names | {
        "machine": kernel.machine, "kernel-release": kernel.release,
        "kernel-version": kernel.version,
    }  # fmt: skip


def _timezone(node: Node, found: Domain) -> Iterator[Typed]:
    if is_machine(found):
        answer = asked(node, found, "guest-get-timezone")
        answer = answer if isinstance(answer, dict) else {}
        offset = answer.get("offset", 0)
        name = answer.get("zone", "")
    else:
        done = execute.run(node, found.env, ["date", "+%Z %z"], timeout=30.0)
        name, _, hours = done.output.strip().partition(" ")
        digits = hours.lstrip("+-")
        seconds = int(digits[:2]) * 3600 + int(digits[2:4]) * 60 if digits.isdigit() else 0
        offset = -seconds if hours.startswith("-") else seconds
    yield _string("timezone.name", name)
    fits = isinstance(offset, int) and abs(offset) < 1 << 17
    yield Typed("timezone.offset", xdr.INT, offset if fits else 0)


def _hostname(node: Node, found: Domain) -> Iterator[Typed]:
    if is_machine(found):
        answer = asked(node, found, "guest-get-host-name")
        yield _string("hostname", answer.get("host-name", "") if isinstance(answer, dict) else "")
    else:
        yield _string("hostname", execute.run(node, found.env, ["hostname"]).output.strip())


def _file_systems(node: Node, found: Domain) -> Iterator[Typed]:
    shown = file_systems(node, found)
    yield _count("fs.count", len(shown))
    for index, each in enumerate(shown):
        for name in ("mountpoint", "name", "fstype"):
            yield _string(f"fs.{index}.{name}", each[name])
        yield _count(f"fs.{index}.disk.count", len(each["dev_aliases"]))


def _interfaces(node: Node, found: Domain) -> Iterator[Typed]:
    shown = interfaces(node, found, AGENT)
    yield _count("if.count", len(shown))
    for index, each in enumerate(shown):
        yield _string(f"if.{index}.name", each["name"])
        if each["hwaddr"]:
            yield _string(f"if.{index}.hwaddr", each["hwaddr"])
        yield _count(f"if.{index}.addr.count", len(each["addrs"]))
        for place, one in enumerate(each["addrs"]):
            here = f"if.{index}.addr.{place}"
            yield _string(f"{here}.type", "ipv6" if one["type"] else "ipv4")
            yield _string(f"{here}.addr", one["addr"])
            yield _count(f"{here}.prefix", one["prefix"])


def processors(node: Node, found: Domain, *, most: bool = False) -> int:
    """Return how many processors a guest uses, or (most) could use."""
    if not is_machine(found):
        return domainxml.processors(found)
    cpus = rows(asked(node, found, "guest-get-vcpus"))
    return sum(bool(each.get("online")) or most for each in cpus)


def use_processors(node: Node, found: Domain, count: int) -> None:
    """Have a guest use COUNT of its processors; raises Failure when it has fewer, or will not."""
    if not is_machine(found):
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"{found.env.name} is a container: it uses those that it is given",
        )
    cpus = rows(asked(node, found, "guest-get-vcpus"))
    online = [each for each in cpus if each.get("online")]
    if len(online) < count:
        change = [each for each in cpus if not each.get("online")][: count - len(online)]
    else:
        spare = [each for each in reversed(online) if each.get("can-offline")]
        change = spare[: len(online) - count]
    if len(change) != abs(count - len(online)):
        raise Failure(failure.INVALID_ARGUMENT, f"The guest cannot use {count} processors")
    up = len(online) < count
    wanted = [{"logical-id": number(each.get("logical-id")), "online": up} for each in change]
    if wanted:
        asked(node, found, "guest-set-vcpus", {"vcpus": wanted})


def clock(node: Node, found: Domain) -> int:
    """Return the guest's time in nanoseconds; a container has the node's."""
    if not is_machine(found):
        return time.time_ns()
    return number(asked(node, found, "guest-get-time"))
