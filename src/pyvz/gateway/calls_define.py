"""Making and changing domains by their descriptions, and their devices one by one.

A new container is made from the OS template that its root file system names, or registered when
that is the disk of a home that lies there already.  A description of a known one is compared with
what it is, and the differences are set as `prlctl set` would.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import Element

from pyvz.errors import EnvironmentNotFound
from pyvz.gateway import (
    domain,
    domaindefine,
    domaintuning,
    domainxml,
    failure,
    machinedefine,
    machinemake,
    machinexml,
    notes,
)
from pyvz.gateway.calls_lifecycle import change
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domain import Domain
from pyvz.gateway.domaindefine import Card, Wanted
from pyvz.gateway.failure import Failure
from pyvz.gateway.machinedefine import Machine
from pyvz.gateway.notes import parsed
from pyvz.model.environment import Environment, Kind
from pyvz.model.grammar_list import Address
from pyvz.model.grammar_net import NetIf
from pyvz.model.task import Progress
from pyvz.operations import configure, lifecycle, provision, register, virtualnet
from pyvz.operations.configure import SetRequest
from pyvz.operations.node import Node
from pyvz.operations.provision import CreateRequest
from pyvz.storage import base as storage
from pyvz.units import KIB

Key = dict[str, Any]
Options = list[tuple[str, str | None]]

LIVE: Final = 1
_ADAPTERS: Final = {theirs: ours for ours, theirs in machinexml.MODELS.items()}
SAMPLE: Final = "vswap.1024MB"  # what the original driver starts from


def domain_define_xml(call: Call, progress: Progress, *, xml: str) -> Values:
    """Make a domain, or change the one with that UUID."""
    return {"dom": _define(call, progress, xml).key}


def domain_define_xml_flags(call: Call, progress: Progress, *, xml: str, flags: int) -> Values:
    """The same; flag 1 asks for a check against a schema, which ours is anyway."""
    _ = flags
    return {"dom": _define(call, progress, xml).key}


def domain_create_xml(call: Call, progress: Progress, *, xml_desc: str, flags: int) -> Values:
    """Make a domain and start it; nothing of ours is transient, so it stays when it stops."""
    _ = flags
    found = _define(call, progress, xml_desc)
    lifecycle.start(call.office.node, found.env.uuid, progress=progress)
    return {"dom": domain.lookup(call.office.node, found.env.uuid).key}


def domain_attach_device(
    call: Call, progress: Progress, *, dom: Key, xml: str, flags: int = LIVE
) -> None:
    """Give it an interface or a disk; in force at once and saved."""
    _check_live(call, dom, flags)
    found = domain.find(call.office.node, dom)
    disk = _disk(found, xml)
    if disk is not None:
        change(call, progress, dom, *machinemake.attached(disk))
        return
    machine = domain.is_machine(found)
    change(call, progress, dom, *_addition(call, _card(xml), machine=machine))


def domain_detach_device(
    call: Call, progress: Progress, *, dom: Key, xml: str, flags: int = LIVE
) -> None:
    """Take an interface away, named by its MAC or by its name inside, or a disk."""
    _check_live(call, dom, flags)
    found = domain.find(call.office.node, dom)
    disk = _disk(found, xml)
    removal = _removal(found, _card(xml)) if disk is None else machinemake.detached(found, disk)
    change(call, progress, dom, *removal)


# Those without flags are the older calls, which mean the running one.
domain_attach_device_flags = domain_attach_device
domain_detach_device_flags = domain_detach_device


def domain_detach_device_alias(
    call: Call, progress: Progress, *, dom: Key, alias: str, flags: int
) -> None:
    """Take away the interface, or the drive of a machine, with that alias."""
    _check_live(call, dom, flags)
    found = domain.find(call.office.node, dom)
    cards = [each for each in found.config.network.interfaces or () if each.ifname == alias]
    drives = [drive.name for drive, _ in machinexml.drives(found) if drive.name == alias]
    if not cards and not drives:
        raise Failure(failure.NO_DEVICE, f"{found.env.name} has no device '{alias}' to detach")
    name = _device(found, cards[0]) if cards else drives[0]
    change(call, progress, dom, ("device-del", name))


def domain_update_device_flags(
    call: Call, progress: Progress, *, dom: Key, xml: str, flags: int
) -> None:
    """Change an interface: its network, or whether its cable is plugged in."""
    _check_live(call, dom, flags)
    found = domain.find(call.office.node, dom)
    disk = _disk(found, xml)
    if disk is not None:
        change(call, progress, dom, *machinemake.updated(found, disk))
        return
    wanted = _card(xml)
    present = _present(found, wanted)
    for options in _updates(call, found, present, wanted):
        change(call, progress, dom, *options)


def _define(call: Call, progress: Progress, xml: str) -> Domain:
    wanted = domaindefine.read(xml)
    machine = machinedefine.read(xml) if wanted.os_type == "hvm" else None
    node = call.office.node
    present = _known(call, wanted)
    if present is not None:
        _change(call, progress, present, (wanted, machine))
        env = present.env
    elif (home := _left_behind(node, wanted, machine=machine is not None)) is not None:
        env = _remembered(call, progress, home, (wanted, machine))
    elif machine is None:
        env = _make(call, progress, wanted)
    else:
        cards = [_addition(call, each, machine=True) for each in wanted.cards]
        cards += _unplugged(wanted.cards, 0)
        order = machinemake.Order(wanted, machine, _limits(wanted), cards)
        env = machinemake.make(node, order, progress)
    notes.replace(env.home, wanted.title, wanted.metadata)
    return domain.lookup(node, env.uuid)


def _change(
    call: Call, progress: Progress, present: Domain, asked: tuple[Wanted, Machine | None]
) -> None:
    """Make of a domain what is asked for; raises Failure before anything has changed."""
    wanted, machine = asked
    if domain.is_machine(present) != (machine is not None):
        raise Failure(failure.FAILED, f"The OS type of {present.env.name} cannot be changed")
    if machine is None:
        _check_file_systems(call, present, wanted)
    more = machinemake.differences(present, machine) if machine is not None else []
    _redefine(call, progress, present, wanted)
    _set(call, progress, present.env, more)
    if machine is not None:
        machinemake.put_in_order(call.office.node, present.env, machine, progress)


def _left_behind(node: Node, wanted: Wanted, *, machine: bool) -> Path | None:
    """Return the home of a domain with that UUID that was undefined, None without one."""
    if not wanted.uuid:
        return None
    if machine:
        home, kind = machinemake.home_of(node, wanted), Kind.VM
    else:
        request = CreateRequest(name=wanted.name, uuid=wanted.uuid)
        home, kind = provision.home_for(node, request), Kind.CT
    return home if (home / kind.conf_name).is_file() else None


def _remembered(
    call: Call, progress: Progress, home: Path, asked: tuple[Wanted, Machine | None]
) -> Environment:
    """Register a domain that was undefined and whose home has stayed."""
    node = call.office.node
    with ExitStack() as undo:
        env = register.register(node, os.fspath(home), uuid=asked[0].uuid, name=asked[0].name)
        undo.callback(register.unregister, node, env.uuid)
        _change(call, progress, domain.lookup(node, env.uuid), asked)
        undo.pop_all()
    return env


def _known(call: Call, wanted: Wanted) -> Domain | None:
    """Return the domain that is meant; raises Failure when its name is another's."""
    found = None
    for ref in (wanted.uuid, wanted.name):
        try:
            env = call.office.node.registry.resolve(ref) if ref else None
        except EnvironmentNotFound:
            continue
        if env is not None and ref == wanted.uuid:
            return domain.lookup(call.office.node, env.uuid)
        if env is not None and env.name == wanted.name:
            found = env
    if found is not None:
        raise Failure(
            failure.FAILED,
            f"domain '{wanted.name}' already exists with uuid {found.uuid}",
        )
    return None


def _make(call: Call, progress: Progress, wanted: Wanted) -> Environment:
    node = call.office.node
    roots = [each for each in wanted.file_systems if each.target == "/"]
    if len(roots) != 1 or len(wanted.file_systems) > 1:
        raise Failure(
            failure.UNSUPPORTED,
            "A container has one filesystem, with the target '/', to begin with: <filesystem"
            " type='template'><source name='OSTEMPLATE'/><target dir='/'/></filesystem>",
        )
    if roots[0].kind != "template":
        return _registered(call, progress, wanted, Path(roots[0].source))
    request = CreateRequest(
        name=wanted.name,
        ostemplate=roots[0].source,
        config=SAMPLE,
        uuid=wanted.uuid or None,
        options=_limits(wanted),
    )
    with ExitStack() as undo:
        env = provision.create(node, request, progress)
        undo.callback(provision.delete, node, env.uuid, force=True)
        steps = [_addition(call, each, machine=False) for each in wanted.cards]
        own = [each for each in wanted.cards if not domaindefine.is_routed(each)]
        _set(call, progress, env, [*steps, *_unplugged(own, 0)])
        undo.pop_all()
    return env


def _registered(call: Call, progress: Progress, wanted: Wanted, disk: Path) -> Environment:
    home = disk.parent if disk.name == storage.ROOT_DISK else disk
    env = register.register(
        call.office.node, os.fspath(home), uuid=wanted.uuid or None, name=wanted.name
    )
    found = domain.lookup(call.office.node, env.uuid)
    _redefine(call, progress, found, wanted)
    return env


def _redefine(call: Call, progress: Progress, present: Domain, wanted: Wanted) -> None:
    """Set what differs; disks are changed with prlctl only, and a difference is refused."""
    config = present.config
    options: Options = []
    if wanted.name != present.env.name:
        options.append(("name", wanted.name))
    if wanted.description != (config.identity.description or ""):
        options.append(("description", wanted.description))
    limit = domainxml.memory_limit(present)
    memory = domaindefine.limit_of(wanted, limit)
    if memory and memory // KIB != limit // KIB:
        options.append(("memsize", f"{memory // KIB}K"))
    if wanted.cpus and wanted.cpus != domainxml.processors(present):
        options.append(("cpus", str(wanted.cpus)))
    options += domaintuning.options(wanted.tuning, config)
    if wanted.cpuset and wanted.cpuset != (config.cpu.mask or ""):
        options.append(("cpumask", wanted.cpuset))
    changes = [options] if options else []
    if not domain.is_machine(present):
        changes += _routed(present, wanted)
    cards = [each for each in config.network.interfaces or () if each.ifname != "venet0"]
    machine = domain.is_machine(present)
    own = [each for each in wanted.cards if machine or not domaindefine.is_routed(each)]
    kept = [_match(each, cards) for each in own]
    # From the last on: the numbers of those before stay what they are.
    gone = [each for each in reversed(cards) if each not in kept]
    pairs = [(card, each) for card, each in zip(kept, own, strict=True) if card is not None]
    for card, each in pairs:
        changes += _updates(call, present, card, each)
    changes += [[("device-del", _device(present, each))] for each in gone]
    added = [each for card, each in zip(kept, own, strict=True) if card is None]
    changes += [_addition(call, each, machine=machine) for each in added]
    changes += _unplugged(added, len(pairs))
    _set(call, progress, present.env, changes)


def _updates(call: Call, found: Domain, present: NetIf, wanted: Card) -> list[Options]:
    """Return what makes a card of PRESENT: its network, and whether its cable is plugged in."""
    device, changes = _device(found, present), list[Options]()
    network, routed = _network(call, wanted), domaindefine.is_routed(wanted)
    # A container's routed card is shown as one of the default network, and stays what it is.
    if network and routed != (domain.is_machine(found) and present.type == "routed"):
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"{device} cannot become routed or bridged: remove it, then add another",
        )
    if network and not routed and network != (present.network or domainxml.DEFAULT_NETWORK):
        changes.append([("device-set", device), ("network", network)])
    changes += _addressed(device, present, wanted)
    if domain.is_machine(found):
        changes += _remodelled(device, present, wanted)
    elif wanted.ifname and wanted.ifname != present.ifname:
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"The name {present.ifname} of {device} cannot be changed to {wanted.ifname}:"
            " remove the interface, then add another",
        )
    if wanted.connected != present.connected:
        changes.append([("device-connect" if wanted.connected else "device-disconnect", device)])
    return changes


def _check_file_systems(call: Call, present: Domain, wanted: Wanted) -> None:
    """Refuse other disks than it has; the root may be named by its template.  Raises Failure."""
    there = domaindefine.read(domainxml.described(call.office.node, present, live=False))
    made_of = (present.config.template.os or "").lstrip(".")
    named, known = set(wanted.file_systems), set(there.file_systems)
    for each in wanted.file_systems:
        if each.kind == "template" and _is_of(made_of, each.source) and each.target == "/":
            named, known = named - {each}, {other for other in known if other.target != "/"}
    if named != known:
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"The filesystems of {present.env.name} are changed with prlctl set --device-add hdd"
            " and --device-del; everything else can be changed here",
        )


def _is_of(template: str, named: str) -> bool:
    """Whether a template is the one that is named, maybe without its architecture."""
    return bool(named) and template in {named, f"{named}-{os.uname().machine}"}


def _addressed(device: str, present: NetIf, wanted: Card) -> list[Options]:
    """Return what gives a card the addresses that are wanted, where they differ."""
    if _same_addresses(wanted.ips, (*present.ip, *present.ip6)):
        return []
    addresses: Options = [("ipset", ip) for ip in wanted.ips] or [("ipdel", "all")]
    return [[("device-set", device), *addresses]]


def _routed(present: Domain, wanted: Wanted) -> list[Options]:
    """Return what gives a container the routed addresses that are wanted, where they differ."""
    ips = tuple(ip for each in wanted.cards if domaindefine.is_routed(each) for ip in each.ips)
    if _same_addresses(ips, tuple(present.config.network.ip or ())):
        return []
    return [[("ipset", ip) for ip in ips] or [("ipdel", "all")]]


def _same_addresses(wanted: Sequence[str], present: Sequence[Address]) -> bool:
    """Whether both name the same; a prefix that is not said is as it is."""
    if len(wanted) != len(present):
        return False
    there = {each.ip: domainxml.prefix_of(each) for each in present}
    for text in wanted:
        ip, _, prefix = text.partition("/")
        if ip not in there or (prefix and there[ip] and prefix != there[ip]):
            return False
    return True


def _remodelled(device: str, present: NetIf, wanted: Card) -> list[Options]:
    """Return what makes a machine's card one of the model that is wanted."""
    model = _ADAPTERS.get(wanted.model, wanted.model)
    if not model or model == dict(present.other).get("card", "virtio"):
        return []
    return [[("device-set", device), ("adapter-type", model)]]


def _unplugged(added: Sequence[Card], first: int) -> list[Options]:
    """Return what pulls the cables of cards that were added as net<FIRST> and so on."""
    return [
        [("device-disconnect", f"net{first + number}")]
        for number, each in enumerate(added)
        if not each.connected
    ]


def _set(call: Call, progress: Progress, env: Environment, changes: list[Options]) -> None:
    for each in changes:
        configure.set_options(call.office.node, env.uuid, SetRequest("prlctl", each), progress)


def _limits(wanted: Wanted) -> Options:
    found: Options = []
    if memory := domaindefine.limit_of(wanted):
        found.append(("memsize", f"{memory // KIB}K"))
    if wanted.cpus:
        found.append(("cpus", str(wanted.cpus)))
    found += domaintuning.options(wanted.tuning)
    if wanted.cpuset:
        found.append(("cpumask", wanted.cpuset))
    if wanted.description:
        found.append(("description", wanted.description))
    return found


def _disk(found: Domain, xml: str) -> Element | None:
    """Return the description of a disk of a machine; None for another device."""
    element = parsed(xml, "description of the device")
    return element if element.tag == "disk" and domain.is_machine(found) else None


def _card(xml: str) -> Card:
    element = parsed(xml, "description of the device")
    if element.tag != "interface":
        raise Failure(
            failure.UNSUPPORTED,
            f"A <{element.tag}> cannot be attached, changed or detached; an <interface> can",
        )
    return domaindefine.card(element)


def _addition(call: Call, wanted: Card, *, machine: bool) -> Options:
    """Return the options that add a card; a machine has routed ones too, and no names inside."""
    if machine:
        return _machine_card(call, wanted)
    if domaindefine.is_routed(wanted):
        return [("ipadd", ip) for ip in wanted.ips]
    options: Options = [("device-add", "net"), ("network", _network(call, wanted))]
    if wanted.mac:
        options.append(("mac", wanted.mac))
    if wanted.ifname:
        options.append(("ifname", wanted.ifname))
    return [*options, *(("ipadd", ip) for ip in wanted.ips)]


def _machine_card(call: Call, wanted: Card) -> Options:
    options: Options = [("device-add", "net")]
    if domaindefine.is_routed(wanted):
        options.append(("type", "routed"))
    else:
        options.append(("network", _network(call, wanted)))
    if wanted.mac:
        options.append(("mac", wanted.mac))
    if wanted.model:
        options.append(("adapter-type", _ADAPTERS.get(wanted.model, wanted.model)))
    return [*options, *(("ipadd", ip) for ip in wanted.ips)]


def _removal(found: Domain, wanted: Card) -> Options:
    if domaindefine.is_routed(wanted) and not domain.is_machine(found):
        return [("ipdel", ip) for ip in wanted.ips] or [("ipdel", "all")]
    return [("device-del", _device(found, _present(found, wanted)))]


def _present(found: Domain, wanted: Card) -> NetIf:
    card = _match(wanted, list(found.config.network.interfaces or ()))
    if card is None:
        raise Failure(
            failure.INVALID_ARGUMENT,
            f"{found.env.name} has no interface with the MAC address '{wanted.mac}'",
        )
    return card


def _device(found: Domain, card: NetIf) -> str:
    """Return the name by which `prlctl set` knows a card: net0, net1, ... in their order."""
    cards = [each for each in found.config.network.interfaces or () if each.ifname != "venet0"]
    return f"net{cards.index(card)}"


def _match(wanted: Card, cards: list[NetIf]) -> NetIf | None:
    for each in cards:
        if (wanted.mac and each.mac.lower() == wanted.mac) or (
            not wanted.mac and wanted.ifname and each.ifname == wanted.ifname
        ):
            return each
    return None


def _network(call: Call, wanted: Card) -> str:
    """Return the name of the network that is meant; raises Failure for an unknown bridge."""
    if not wanted.bridge:
        return wanted.network
    for each in virtualnet.states(call.office.node):
        if wanted.bridge in (each.network.bridge, each.network.name):
            return each.network.name
    raise Failure(
        failure.NO_NETWORK,
        f"No virtual network has the bridge '{wanted.bridge}' (prlsrvctl net list)",
    )


def _check_live(call: Call, dom: Key, flags: int) -> None:
    if flags & LIVE:
        domain.find_running(call.office.node, dom)
