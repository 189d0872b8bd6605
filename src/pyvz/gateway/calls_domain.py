"""Listing and looking at domains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pyvz.gateway import domain, domainxml, failure, machinexml
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.operations.node import Node
from pyvz.store import savedstates
from pyvz.units import KIB

INACTIVE: Final = 2  # flag of the description: what is stored, not what runs
SECURE: Final = 1
MAXIMUM: Final = 4

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
    lambda _: False,  # has a checkpoint
    lambda _: True,
)
_GROUPS: Final = ((0, 1), (2, 3), (4, 5, 6, 7), (8, 9), (10, 11), (12, 13), (14, 15))


def selected(each: Domain, flags: int) -> bool:
    """Whether the filters in FLAGS let a domain through."""
    for group in _GROUPS:
        asked = [bit for bit in group if flags >> bit & 1]
        if asked and not any(_FILTERS[bit](each) for bit in asked):
            return False
    return True


def connect_list_all_domains(call: Call, *, need_results: int, flags: int) -> Values:
    """Every domain that the filters select, or how many there are."""
    found = [each.key for each in domain.all_domains(call.office.node) if selected(each, flags)]
    return {"domains": found if need_results else [], "ret": len(found)}


def connect_num_of_domains(call: Call) -> Values:
    """How many run."""
    return {"num": sum(each.running for each in domain.all_domains(call.office.node))}


def connect_list_domains(call: Call, *, maxids: int) -> Values:
    """The numbers of those that run."""
    found = [each.number for each in domain.all_domains(call.office.node) if each.running]
    return {"ids": found[: max(0, maxids)]}


def connect_num_of_defined_domains(call: Call) -> Values:
    """How many do not run."""
    return {"num": sum(not each.running for each in domain.all_domains(call.office.node))}


def connect_list_defined_domains(call: Call, *, maxnames: int) -> Values:
    """The names of those that do not run."""
    found = [each.env.name for each in domain.all_domains(call.office.node) if not each.running]
    return {"names": found[: max(0, maxnames)]}


def domain_lookup_by_id(call: Call, *, id: int) -> Values:
    """A running domain by its number."""
    return {"dom": domain.by_number(call.office.node, id).key}


def domain_lookup_by_name(call: Call, *, name: str) -> Values:
    """A domain by its name (and by nothing else: clients try the rest themselves)."""
    found = domain.lookup(call.office.node, name)
    if found.env.name != name:
        raise Failure(failure.NO_DOMAIN, f"Domain not found: no domain is called '{name}'")
    return {"dom": found.key}


def domain_lookup_by_uuid(call: Call, *, uuid: str) -> Values:
    """A domain by its UUID."""
    return {"dom": domain.lookup(call.office.node, uuid).key}


def domain_get_state(call: Call, *, dom: dict[str, Any], flags: int) -> Values:
    """State and reason."""
    _ = flags
    state, reason = domain.find(call.office.node, dom).state
    return {"state": state, "reason": reason}


def domain_get_info(call: Call, *, dom: dict[str, Any]) -> Values:
    """State, memory in KiB, processors, CPU time in nanoseconds."""
    found = domain.find(call.office.node, dom)
    usage = call.office.node.cgroups.usage(found.env.uuid) if found.running else None
    limit = domainxml.memory_limit(found)
    return {
        "state": found.state[0],
        "maxMem": limit // KIB,
        "memory": ((usage.memory or 0) if usage else limit) // KIB,
        "nrVirtCpu": domainxml.processors(found),
        "cpuTime": (usage.cpu_ns or 0) if usage else 0,
    }


def domain_get_xml_desc(call: Call, *, dom: dict[str, Any], flags: int) -> Values:
    """Its description: as it runs, or as it is stored."""
    if flags & SECURE and call.client.readonly:
        raise Failure(failure.DENIED, "Secrets are not shown on a read-only connection")
    found = domain.find(call.office.node, dom)
    live = found.running and not flags & INACTIVE
    return {"xml": description(call.office.node, found, live=live)}


def description(node: Node, found: Domain, *, live: bool) -> str:
    """Return the XML of a domain of either kind; live: with what only a running one has."""
    describe = machinexml.described if domain.is_machine(found) else domainxml.described
    return describe(node, found, live=live)


def domain_get_os_type(call: Call, *, dom: dict[str, Any]) -> Values:
    """Container (exe) or virtual machine (hvm)."""
    return {"type": domain.os_type(domain.find(call.office.node, dom).env)}


def domain_is_active(call: Call, *, dom: dict[str, Any]) -> Values:
    """Whether it runs."""
    return {"active": int(domain.find(call.office.node, dom).running)}


def domain_is_persistent(call: Call, *, dom: dict[str, Any]) -> Values:
    """Everything of ours is on disk."""
    domain.find(call.office.node, dom)
    return {"persistent": 1}


def domain_is_updated(call: Call, *, dom: dict[str, Any]) -> Values:
    """Whether what is stored differs from what runs: changes are in force at once."""
    domain.find(call.office.node, dom)
    return {"updated": 0}


def domain_has_managed_save_image(call: Call, *, dom: dict[str, Any], flags: int) -> Values:
    """Whether it is suspended."""
    _ = flags
    return {"result": int(domain.find(call.office.node, dom).status == "suspended")}


def domain_get_control_info(call: Call, *, dom: dict[str, Any], flags: int) -> Values:
    """Nothing of ours keeps the control of a domain busy for a client to see."""
    _ = flags
    domain.find(call.office.node, dom)
    return {"state": 0, "details": 0, "stateTime": 0}


def domain_get_hostname(call: Call, *, dom: dict[str, Any], flags: int) -> Values:
    """The name that it was given."""
    _ = flags
    found = domain.find(call.office.node, dom)
    return {"hostname": found.config.network.hostname or found.env.name}


def domain_get_autostart(call: Call, *, dom: dict[str, Any]) -> Values:
    """Whether it is started with the node."""
    return {"autostart": int(domain.find(call.office.node, dom).starts_with_node)}


def domain_get_max_memory(call: Call, *, dom: dict[str, Any]) -> Values:
    """The memory that it may use, in KiB."""
    return {"memory": domainxml.memory_limit(domain.find(call.office.node, dom)) // KIB}


def domain_get_max_vcpus(call: Call, *, dom: dict[str, Any]) -> Values:
    """The most processors that it can have."""
    return {"num": domainxml.most_processors(domain.find(call.office.node, dom))}


def domain_get_vcpus_flags(call: Call, *, dom: dict[str, Any], flags: int) -> Values:
    """Its processors; with flag 4 the most that it can have."""
    found = domain.find(call.office.node, dom)
    count = domainxml.most_processors if flags & MAXIMUM else domainxml.processors
    return {"num": count(found)}


def domain_get_messages(call: Call, *, dom: dict[str, Any], flags: int) -> Values:
    """What is wrong with its configuration."""
    _ = flags
    return {"msgs": list(domain.find(call.office.node, dom).config.problems)}
