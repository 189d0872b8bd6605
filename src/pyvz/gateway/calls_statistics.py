"""What domains use: in bulk (one call for all), and piece by piece for older clients."""

from __future__ import annotations

import os
from typing import Any, Final

from pyvz.gateway import (
    calls_memory,
    containerdisk,
    domain,
    domainxml,
    failure,
    guestmemory,
    machineblock,
)
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domain import Domain, is_machine
from pyvz.gateway.failure import Failure
from pyvz.gateway.prompt import first, packed_answer, read, remember, remembered
from pyvz.gateway.xdr import INT, LLONG, STRING, UINT, ULLONG, Packed, Typed, codec, pack
from pyvz.model.usage import Usage
from pyvz.operations import machinethreads, traffic
from pyvz.operations.node import Node
from pyvz.units import MIB

Key = dict[str, Any]

STATE, CPU, BALLOON, VCPU, NET, BLOCK, DIRTY = 1, 2, 4, 8, 16, 32, 512
ALL: Final = STATE | CPU | BALLOON | VCPU | NET | BLOCK
KNOWN: Final = ALL | DIRTY  # this one is told when it is asked for
ENFORCE: Final = 1 << 31  # fail on kinds that are not there
ACTIVE, INACTIVE = 1, 2
IN_BYTES: Final = 1  # flag of the job on a disk


def _known_stats(call: Call, *, doms: list[Key], stats: int, flags: int) -> Packed | None:
    table = call.office.roster.table()
    if table is None or doms or stats & ~ALL:
        return None
    return remembered(table.memo, ("stats", stats or ALL, flags))


@first(_known_stats)
def connect_get_all_domain_stats(call: Call, *, doms: list[Key], stats: int, flags: int) -> Packed:
    """The figures of the domains named, or of all."""
    if flags & ENFORCE and stats & ~KNOWN:
        raise Failure(failure.INVALID_ARGUMENT, f"Unknown statistics 0x{stats & ~KNOWN:x}")
    kinds = stats & KNOWN if stats else ALL
    table = call.office.roster.read() if not doms else None
    found = map(domain.seen, table.rows) if table else (read(call, dom) for dom in doms)
    wanted = [each for each in found if _selected(each, flags)]
    records = [_record(call.office.node, each, kinds) for each in wanted]
    answer = packed_answer(call, {"retStats": records})
    if table is None or any(each.running for each in wanted):
        return answer
    return remember(table.memo, ("stats", kinds, flags), answer)


def _record(node: Node, each: Domain, kinds: int) -> Packed:
    """Return the figures of one; those of one that does not run are those of its configuration."""
    key = ("stats", kinds)
    found = None if each.running else remembered(each.memo, key)
    if found is None:
        params = figures(node, each, kinds)
        packed = pack(codec("domain_stats_record"), {"dom": each.packed_key, "params": params})
        found = Packed(packed)
        if not each.running:
            remember(each.memo, key, found)
    return found


def figures(node: Node, each: Domain, kinds: int) -> list[Typed]:
    """Return the figures of one domain, of the KINDS asked for."""
    usage = node.cgroups.usage(each.env.uuid) if each.running else Usage()
    found: list[Typed] = []
    if kinds & STATE:
        state, reason = each.state
        found += [Typed("state.state", INT, state), Typed("state.reason", INT, reason)]
    if kinds & CPU and usage.cpu_ns is not None:
        found.append(Typed("cpu.time", ULLONG, usage.cpu_ns))
    if kinds & BALLOON:
        found += guestmemory.figures(guestmemory.of(node, each, usage))
    if kinds & VCPU:
        found += _processors(node, each)
    if kinds & NET:
        found += _cards(node, each)
    if kinds & BLOCK:
        found += machineblock.figures(node, each) if is_machine(each) else _disks(each, usage)
    if kinds & DIRTY:
        found += calls_memory.dirty_rate(node, each)
    return found


def domain_interface_stats(call: Call, *, dom: Key, path: str) -> Values:
    """Bytes and packets of one interface, by its name on the node, inside, or by its MAC."""
    found = domain.find_running(call.office.node, dom)
    macs = {card.ifname: card.mac for card in found.config.network.interfaces or ()}
    for each in traffic.by_card(call.office.node, found.env.uuid):
        if path.lower() in (each.host_name, each.name, macs.get(each.name, "").lower()):
            return {
                "rx_bytes": each.bytes_in, "rx_packets": each.packets_in,
                "rx_errs": each.errors_in, "rx_drop": each.dropped_in,
                "tx_bytes": each.bytes_out, "tx_packets": each.packets_out,
                "tx_errs": each.errors_out, "tx_drop": each.dropped_out,
            }  # fmt: skip
    raise Failure(failure.INVALID_ARGUMENT, f"{found.env.name} has no interface '{path}'")


def domain_block_stats(call: Call, *, dom: Key, path: str) -> Values:
    """Bytes that its disks have moved, all of them together of a container; there no requests."""
    found = domain.find_running(call.office.node, dom)
    if is_machine(found):
        one = machineblock.of_one(call.office.node, found, path)
        return {"rd_req": one.reads, "rd_bytes": one.read, "wr_req": one.writes,
                "wr_bytes": one.written, "errs": -1}  # fmt: skip
    read, written = _all_disks(call.office.node, found, path)
    return {"rd_req": -1, "rd_bytes": read, "wr_req": -1, "wr_bytes": written, "errs": -1}


def domain_block_stats_flags(
    call: Call, *, dom: Key, path: str, nparams: int, flags: int
) -> Values:
    """The same as typed parameters, of a machine with the times that it took, in nanoseconds."""
    _ = flags
    node, present = call.office.node, domain.find_running(call.office.node, dom)
    values: dict[str, int]
    if is_machine(present):
        one = machineblock.of_one(node, present, path)
        values = dict(zip(machineblock.WORDS, one, strict=True))
    else:
        values = dict(zip(("rd_bytes", "wr_bytes"), _all_disks(node, present, path), strict=True))
    found = [Typed(name, LLONG, value) for name, value in values.items()]
    return {"params": found[:nparams], "nparams": len(found)}


def _all_disks(node: Node, found: Domain, path: str) -> tuple[int, int]:
    """Return what a container has read and written; raises Failure for a disk it has not."""
    if path:
        containerdisk.find(found, path)
    usage = node.cgroups.usage(found.env.uuid)
    return usage.io_read or 0, usage.io_written or 0


def domain_get_block_info(call: Call, *, dom: Key, path: str, flags: int) -> Values:
    """The size of a disk, and how much of it is in use."""
    _ = flags
    found = domain.find(call.office.node, dom)
    if is_machine(found):
        return dict(machineblock.size(found, path))
    return dict(containerdisk.size(found, path))


def domain_get_block_job_info(call: Call, *, dom: Key, path: str, flags: int) -> Values:
    """The job on a machine's disk; its speed in MiB, or bytes with flag 1."""
    found = domain.find_running(call.office.node, dom)
    nothing = dict.fromkeys(("found", "type", "bandwidth", "cur", "end"), 0)
    if not is_machine(found):
        return nothing
    job = machineblock.job(call.office.node, found, path)
    if job is None:
        return nothing
    speed = job["bandwidth"] if flags & IN_BYTES else -(-job["bandwidth"] // MIB)
    return nothing | {"found": 1, **job, "bandwidth": speed}


def domain_memory_stats(call: Call, *, dom: Key, maxStats: int, flags: int) -> Values:
    """Memory in KiB, by the protocol's tags."""
    _ = flags
    node, found = call.office.node, domain.find_running(call.office.node, dom)
    memory = guestmemory.of(node, found, node.cgroups.usage(found.env.uuid))
    return {"stats": guestmemory.tagged(memory)[:maxStats]}


def domain_get_cpu_stats(
    call: Call, *, dom: Key, nparams: int, start_cpu: int, ncpus: int, flags: int
) -> Values:
    """CPU time of all processors together (start_cpu -1); none is counted by processor."""
    _ = flags
    found = domain.find_running(call.office.node, dom)
    if start_cpu != -1:
        if ncpus == 0:
            return {"params": [], "nparams": 1}  # how many processors there are to ask for
        raise Failure(failure.OPERATION_UNSUPPORTED, "CPU time is not counted by processor")
    usage = call.office.node.cgroups.usage(found.env.uuid)
    params = [Typed("cpu_time", ULLONG, usage.cpu_ns or 0)]
    return {"params": params[:nparams], "nparams": 1}


def _selected(each: Domain, flags: int) -> bool:
    if flags & ACTIVE and not flags & INACTIVE:
        return each.running
    return not (flags & INACTIVE and not flags & ACTIVE and each.running)


def _cards(node: Node, each: Domain) -> list[Typed]:
    found: list[Typed] = []
    rows = traffic.by_card(node, each.env.uuid) if each.running else []
    for number, row in enumerate(rows):
        found.append(Typed(f"net.{number}.name", STRING, row.host_name))
        for way, counted in (
            ("rx", (row.bytes_in, row.packets_in, row.errors_in, row.dropped_in)),
            ("tx", (row.bytes_out, row.packets_out, row.errors_out, row.dropped_out)),
        ):
            words = zip(("bytes", "pkts", "errs", "drop"), counted, strict=True)
            found += [Typed(f"net.{number}.{way}.{word}", ULLONG, value) for word, value in words]
    return [Typed("net.count", UINT, len(rows)), *found]


def _processors(node: Node, each: Domain) -> list[Typed]:
    """Return how many processors there are, and what each one of a machine has done."""
    count, most = domainxml.processors(each), domainxml.most_processors(each)
    found = [Typed("vcpu.current", UINT, count), Typed("vcpu.maximum", UINT, most)]
    if each.running and is_machine(each):
        for number, thread in enumerate(machinethreads.processors(node, each.env.uuid)):
            found += [
                Typed(f"vcpu.{number}.state", INT, 1),
                Typed(f"vcpu.{number}.time", ULLONG, thread.time),
                Typed(f"vcpu.{number}.delay", ULLONG, thread.delay),
            ]
    return found


def _disks(each: Domain, usage: Usage) -> list[Typed]:
    found = [
        Typed("block.count", UINT, 1),
        Typed("block.0.name", STRING, containerdisk.ROOT),
        Typed("block.0.path", STRING, os.fspath(each.env.home)),
    ]
    if usage.io_read is not None and usage.io_written is not None:
        found += [
            Typed("block.0.rd.bytes", ULLONG, usage.io_read),
            Typed("block.0.wr.bytes", ULLONG, usage.io_written),
        ]
    return found
