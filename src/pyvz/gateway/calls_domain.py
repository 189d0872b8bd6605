"""Listing and looking at domains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from pyvz.gateway import domain, domainxml, failure, guestmemory, guestview, machinexml
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.prompt import (
    everyone,
    first,
    known,
    of_domain,
    packed_answer,
    read,
    remember,
    remembered,
)
from pyvz.gateway.xdr import Packed
from pyvz.model.usage import Usage
from pyvz.operations.node import Node
from pyvz.store import checkpoints, savedstates
from pyvz.units import KIB

INACTIVE: Final = 2  # flag of the description: what is stored, not what runs
SECURE: Final = 1
MAXIMUM: Final = 4
GUEST: Final = 8

# (bit, what it selects); bits 2i and 2i+1 are a pair: "or" inside, "and" between.
_FILTERS: Final[tuple[Callable[[Domain], bool], ...]] = (
    lambda each: each.running,
    lambda each: not each.running,
    lambda _: True,  # persistent
    lambda _: False,  # transient
    lambda each: each.state[0] == domain.RUNNING,
    lambda each: each.state[0] == domain.PAUSED,
    lambda each: each.state[0] == domain.SHUTOFF,
    lambda each: each.state[0] == domain.SHUTDOWN,
    lambda each: each.status == "suspended",
    lambda each: each.status != "suspended",
    lambda each: each.starts_with_node,
    lambda each: not each.starts_with_node,
    lambda each: bool(savedstates.load(each.env.home).items),
    lambda each: not savedstates.load(each.env.home).items,
    lambda each: bool(checkpoints.load(each.env.home).items),
    lambda each: not checkpoints.load(each.env.home).items,
)
_ON_DISK: Final = 0b1111 << 12  # those that look at more than what is known of a domain
_GROUPS: Final = ((0, 1), (2, 3), (4, 5, 6, 7), (8, 9), (10, 11), (12, 13), (14, 15))


def selected(each: Domain, flags: int) -> bool:
    """Whether the filters in FLAGS let a domain through."""
    for group in _GROUPS:
        asked = [bit for bit in group if flags >> bit & 1]
        if asked and not any(_FILTERS[bit](each) for bit in asked):
            return False
    return True


def _listed(call: Call, *, need_results: int, flags: int) -> Packed | None:
    table = call.office.roster.table()
    return None if table is None else remembered(table.memo, ("list", bool(need_results), flags))


@first(_listed)
def connect_list_all_domains(call: Call, *, need_results: int, flags: int) -> Packed:
    """Every domain that the filters select, or how many there are."""
    table = call.office.roster.read()
    found = [each for each in map(domain.seen, table.rows) if selected(each, flags)]
    keys = [each.packed_key for each in found] if need_results else []
    answer = packed_answer(call, {"domains": keys, "ret": len(found)})
    if flags & _ON_DISK:
        return answer
    return remember(table.memo, ("list", bool(need_results), flags), answer)


def connect_num_of_domains(call: Call) -> Values:
    """How many run."""
    return {"num": sum(each.running for each in everyone(call))}


def connect_list_domains(call: Call, *, maxids: int) -> Values:
    """The numbers of those that run."""
    found = [each.number for each in everyone(call) if each.running]
    return {"ids": found[: max(0, maxids)]}


def connect_num_of_defined_domains(call: Call) -> Values:
    """How many do not run."""
    return {"num": sum(not each.running for each in everyone(call))}


def connect_list_defined_domains(call: Call, *, maxnames: int) -> Values:
    """The names of those that do not run."""
    found = [each.env.name for each in everyone(call) if not each.running]
    return {"names": found[: max(0, maxnames)]}


def _known_numbers(call: Call, *, id: int) -> Values | None:
    table = call.office.roster.table()
    return None if table is None else {"dom": _numbered(map(domain.seen, table.rows), id).key}


@first(_known_numbers)
def domain_lookup_by_id(call: Call, *, id: int) -> Values:
    """A running domain by its number."""
    return {"dom": _numbered(everyone(call), id).key}


def _numbered(domains: Iterable[Domain], number: int) -> Domain:
    for each in domains:
        if each.number == number:
            return each
    raise Failure(failure.NO_DOMAIN, f"Domain not found: no running domain has the id {number}")


def _known_names(call: Call, *, name: str) -> Values | None:
    table = call.office.roster.table()
    for each in table.rows if table is not None else ():
        if each.env.name == name:
            return {"dom": domain.seen(each).key}
    return None


@first(_known_names)
def domain_lookup_by_name(call: Call, *, name: str) -> Values:
    """A domain by its name (and by nothing else: clients try the rest themselves)."""
    found = domain.lookup(call.office.node, name)
    if found.env.name != name:
        raise Failure(failure.NO_DOMAIN, f"Domain not found: no domain is called '{name}'")
    return {"dom": found.key}


def _known_uuids(call: Call, *, uuid: str) -> Values | None:
    found = known(call, uuid)
    return None if found is None else {"dom": found.key}


@first(_known_uuids)
def domain_lookup_by_uuid(call: Call, *, uuid: str) -> Values:
    """A domain by its UUID."""
    return {"dom": read(call, {"uuid": uuid}).key}


@of_domain
def domain_get_state(found: Domain, *, flags: int) -> Values:
    """State and reason."""
    _ = flags
    state, reason = found.state
    return {"state": state, "reason": reason}


def _known_info(call: Call, *, dom: dict[str, Any]) -> Values | None:
    """Of one that does not run: what another uses has to be read."""
    found = known(call, dom["uuid"])
    return None if found is None or found.running else _info(found, Usage())


@first(_known_info)
def domain_get_info(call: Call, *, dom: dict[str, Any]) -> Values:
    """State, memory in KiB, processors, CPU time in nanoseconds."""
    found, node = read(call, dom), call.office.node
    if not found.running:
        return _info(found, Usage())
    usage = node.cgroups.usage(found.env.uuid)
    return _info(found, usage, guestmemory.current(node, found, usage))


def _info(found: Domain, usage: Usage, current: int | None = None) -> Values:
    limit = domainxml.memory_limit(found)
    memory = limit if current is None else current
    return {
        "state": found.state[0],
        "maxMem": limit // KIB,
        "memory": memory // KIB,
        "nrVirtCpu": domainxml.processors(found),
        "cpuTime": usage.cpu_ns or 0,
    }


def _known_description(call: Call, *, dom: dict[str, Any], flags: int) -> Packed | None:
    found = known(call, dom["uuid"])
    if found is None or flags & SECURE:
        return None
    return remembered(found.memo, ("xml", found.running and not flags & INACTIVE))


@first(_known_description)
def domain_get_xml_desc(call: Call, *, dom: dict[str, Any], flags: int) -> Packed:
    """Its description: as it runs, or as it is stored."""
    if flags & SECURE and call.client.readonly:
        raise Failure(failure.DENIED, "Secrets are not shown on a read-only connection")
    found = read(call, dom)
    live = found.running and not flags & INACTIVE
    text = description(call.office.node, found, live=live)
    answer = packed_answer(call, {"xml": text})
    if live and domain.is_machine(found):  # the port of its display may change
        return answer
    return remember(found.memo, ("xml", live), answer)


def description(node: Node, found: Domain, *, live: bool) -> str:
    """Return the XML of a domain of either kind; live: with what only a running one has."""
    describe = machinexml.described if domain.is_machine(found) else domainxml.described
    return describe(node, found, live=live)


@of_domain
def domain_get_os_type(found: Domain) -> Values:
    """Container (exe) or virtual machine (hvm)."""
    return {"type": domain.os_type(found.env)}


@of_domain
def domain_is_active(found: Domain) -> Values:
    """Whether it runs."""
    return {"active": int(found.running)}


@of_domain
def domain_is_persistent(found: Domain) -> Values:
    """Everything of ours is on disk."""
    _ = found
    return {"persistent": 1}


@of_domain
def domain_is_updated(found: Domain) -> Values:
    """Whether what is stored differs from what runs: changes are in force at once."""
    _ = found
    return {"updated": 0}


@of_domain
def domain_has_managed_save_image(found: Domain, *, flags: int) -> Values:
    """Whether it is suspended."""
    _ = flags
    return {"result": int(found.status == "suspended")}


@of_domain
def domain_get_control_info(found: Domain, *, flags: int) -> Values:
    """Nothing of ours keeps the control of a domain busy for a client to see."""
    _ = found, flags
    return {"state": 0, "details": 0, "stateTime": 0}


@of_domain
def domain_get_hostname(found: Domain, *, flags: int) -> Values:
    """The name that it was given."""
    _ = flags
    return {"hostname": found.config.network.hostname or found.env.name}


@of_domain
def domain_get_autostart(found: Domain) -> Values:
    """Whether it is started with the node."""
    return {"autostart": int(found.starts_with_node)}


@of_domain
def domain_get_max_memory(found: Domain) -> Values:
    """The memory that it may use, in KiB."""
    return {"memory": domainxml.memory_limit(found) // KIB}


@of_domain
def domain_get_max_vcpus(found: Domain) -> Values:
    """The most processors that it can have."""
    return {"num": domainxml.most_processors(found)}


def _known_vcpus(call: Call, *, dom: dict[str, Any], flags: int) -> Values | None:
    found = known(call, dom["uuid"])
    return None if found is None or flags & GUEST else _vcpus(found, flags)


@first(_known_vcpus)
def domain_get_vcpus_flags(call: Call, *, dom: dict[str, Any], flags: int) -> Values:
    """Its processors; with flag 4 the most that it can have, with 8 those that the guest uses."""
    if flags & GUEST:
        if call.client.readonly:
            raise Failure(failure.DENIED, "The agent is not asked for read-only access")
        found = domain.find_running(call.office.node, dom)
        return {"num": guestview.processors(call.office.node, found, most=bool(flags & MAXIMUM))}
    return _vcpus(read(call, dom), flags)


def _vcpus(found: Domain, flags: int) -> Values:
    count = domainxml.most_processors if flags & MAXIMUM else domainxml.processors
    return {"num": count(found)}


@of_domain
def domain_get_messages(found: Domain, *, flags: int) -> Values:
    """What is wrong with its configuration."""
    _ = flags
    return {"msgs": list(found.config.problems)}
