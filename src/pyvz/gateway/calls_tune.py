"""Rates of disks and interfaces (blkdeviotune, domiftune): limits of the whole domain with us.

A rate that is asked for one disk, or one interface, is that of all of them together, which is the
same where the domain has one; for one of several it is refused, as is every rate that we cannot
keep: of reading alone, of bursts, of one direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pyvz.gateway import containerdisk, domain, failure, machineblock, machinexml
from pyvz.gateway.calls_lifecycle import change
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domain import Domain, is_machine
from pyvz.gateway.failure import Failure
from pyvz.gateway.xdr import UINT, ULLONG, Typed
from pyvz.model.grammar_net import NetIf
from pyvz.model.task import Progress

Key = dict[str, Any]

LIVE: Final = 1
BYTES, REQUESTS = "total_bytes_sec", "total_iops_sec"
_ONE_WAY: Final = ("read_bytes_sec", "write_bytes_sec", "read_iops_sec", "write_iops_sec")
IN, OUT = "inbound.average", "outbound.average"  # KiB per second
_BURSTS: Final = ("inbound.peak", "inbound.burst", "outbound.peak", "outbound.burst")
_CLASS: Final = 1  # of traffic: what no line of networks_classes names
_BITS: Final = 8


def domain_get_block_io_tune(
    call: Call, *, dom: Key, disk: str | None, nparams: int, flags: int
) -> Values:
    """The rates of a disk; nparams 0 asks how many there are."""
    _ = flags
    found = domain.find(call.office.node, dom)
    if disk:
        _check_disk(found, disk)
    io = found.config.io
    rates = {BYTES: io.limit or 0, REQUESTS: io.operations or 0, **dict.fromkeys(_ONE_WAY, 0)}
    params = [Typed(name, ULLONG, value) for name, value in rates.items()]
    return {"params": params[:nparams], "nparams": len(params)}


def domain_set_block_io_tune(
    call: Call, progress: Progress, *, dom: Key, disk: str, params: Sequence[Typed], flags: int
) -> None:
    """Set the rates of a domain's one disk; 0: none."""
    found = _found(call, dom, flags)
    _check_disk(found, disk)
    if len(_disks(found)) > 1:
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"{found.env.name} has several disks, and its rates are those of all together:"
            " set them with prlctl set --iolimit and --iopslimit",
        )
    values = _values(params, (BYTES, REQUESTS))
    options = {BYTES: ("iolimit", "B"), REQUESTS: ("iopslimit", "")}
    given = [(options[name][0], f"{value}{options[name][1]}") for name, value in values.items()]
    change(call, progress, dom, *given)


def domain_get_interface_parameters(
    call: Call, *, dom: Key, device: str, nparams: int, flags: int
) -> Values:
    """The rates of an interface, in KiB per second; nparams 0 asks how many there are."""
    _ = flags
    found = domain.find(call.office.node, dom)
    _check_card(found, device)
    rate = _rate(found)
    values = {IN: rate, OUT: rate, **dict.fromkeys(_BURSTS, 0)}
    params = [Typed(name, UINT, value) for name, value in values.items()]
    return {"params": params[:nparams], "nparams": len(params)}


def domain_set_interface_parameters(
    call: Call, progress: Progress, *, dom: Key, device: str, params: Sequence[Typed], flags: int
) -> None:
    """Set the rate of a domain's one interface, the same in and out; 0: that of the node."""
    found = _found(call, dom, flags)
    _check_card(found, device)
    values = _values(params, (IN, OUT))
    if len(_cards(found)) > 1 or len(values) != 2 or values[IN] != values[OUT]:
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"The rate of {found.env.name} is one for all its interfaces and both directions:"
            " give one with one interface the same average --inbound and --outbound",
        )
    rate = values[IN]
    if not rate:
        change(call, progress, dom, ("rate", ""), ("ratebound", "no"))
        return
    if not call.office.node.config().traffic_shaping:
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            "Traffic is not shaped on this node: prlsrvctl set --shaping on",
        )
    change(call, progress, dom, ("rate", f"{_CLASS}:{rate * _BITS}"), ("ratebound", "yes"))


def _found(call: Call, dom: Key, flags: int) -> Domain:
    look = domain.find_running if flags & LIVE else domain.find
    return look(call.office.node, dom)


def _values(params: Iterable[Typed], known: Sequence[str]) -> Mapping[str, int]:
    """Return what is asked for, by name; raises Failure for what cannot be kept."""
    values: dict[str, int] = {}
    for each in params:
        if each.field in known:
            values[each.field] = int(each.value)
        elif each.value:
            raise Failure(
                failure.OPERATION_UNSUPPORTED,
                f"{each.field} cannot be set here: {' and '.join(known)} can",
            )
    return values


def _disks(found: Domain) -> list[str]:
    if is_machine(found):
        return [drive.name for drive, _ in machinexml.drives(found) if drive.is_disk]
    return [name for name, _, _ in containerdisk.named(found)]


def _check_disk(found: Domain, name: str) -> None:
    """Raise Failure (8) when there is no such disk."""
    if is_machine(found):
        machineblock.find(found, name)
    else:
        containerdisk.find(found, name)


def _cards(found: Domain) -> list[NetIf]:
    cards = [each for each in found.config.network.interfaces or () if each.ifname != "venet0"]
    return [NetIf("venet0"), *cards] if found.config.network.ip else cards


def _check_card(found: Domain, name: str) -> None:
    """Raise Failure (8) when there is no interface of that MAC, or name on the node or inside."""
    for card in _cards(found):
        if name and name.lower() in {card.mac.lower(), card.ifname, card.host_ifname}:
            return
    raise Failure(failure.INVALID_ARGUMENT, f"{found.env.name} has no interface '{name}'")


def _rate(found: Domain) -> int:
    if not found.config.network.rate_bound:
        return 0
    rates = found.config.network.rates or ()
    return next((each.kbits // _BITS for each in rates if each.traffic_class == _CLASS), 0)
