"""What domains use: in bulk (one call for all), and piece by piece for older clients."""

from __future__ import annotations

import os
from typing import Any, Final

from pyvz.gateway import containerdisk, domain, domainxml, failure, machineblock
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domain import Domain, is_machine
from pyvz.gateway.failure import Failure
from pyvz.gateway.prompt import first, packed_answer, read, remember, remembered
from pyvz.gateway.xdr import INT, STRING, UINT, ULLONG, Packed, Typed, codec, pack
from pyvz.model.usage import Usage
from pyvz.operations import traffic
from pyvz.operations.node import Node
from pyvz.units import KIB, MIB

Key = dict[str, Any]

STATE, CPU, BALLOON, VCPU, NET, BLOCK = 1, 2, 4, 8, 16, 32
ALL: Final = STATE | CPU | BALLOON | VCPU | NET | BLOCK
ENFORCE: Final = 1 << 31  # fail on kinds that are not there
ACTIVE, INACTIVE = 1, 2
IN_BYTES: Final = 1  # flag of the job on a disk
RSS, ACTUAL, AVAILABLE, UNUSED, USABLE = 7, 6, 5, 4, 8


def _known_stats(call: Call, *, doms: list[Key], stats: int, flags: int) -> Packed | None:
    table = call.office.roster.table()
    if table is None or doms or stats & ~ALL:
        return None
    return remembered(table.memo, ("stats", stats or ALL, flags))


@first(_known_stats)
def connect_get_all_domain_stats(call: Call, *, doms: list[Key], stats: int, flags: int) -> Packed:
    """The figures of the domains named, or of all."""
    if flags & ENFORCE and stats & ~ALL:
        raise Failure(failure.INVALID_ARGUMENT, f"Unknown statistics 0x{stats & ~ALL:x}")
    kinds = stats & ALL if stats else ALL
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
        limit = domainxml.memory_limit(each) // KIB
        found += [Typed("balloon.current", ULLONG, limit), Typed("balloon.maximum", ULLONG, limit)]
        if usage.memory is not None:
            used = usage.memory // KIB
            found.append(Typed("balloon.rss", ULLONG, used))
            # Of a machine nobody knows what its guest has left: all of it is used.
            unused = 0 if is_machine(each) else max(0, limit - used)
            found.append(Typed("balloon.unused", ULLONG, unused))
    if kinds & VCPU:
        count = domainxml.processors(each)
        most = domainxml.most_processors(each)
        found += [Typed("vcpu.current", UINT, count), Typed("vcpu.maximum", UINT, most)]
    if kinds & NET:
        found += _cards(node, each)
    if kinds & BLOCK:
        found += machineblock.figures(node, each) if is_machine(each) else _disks(each, usage)
    return found


def domain_interface_stats(call: Call, *, dom: Key, path: str) -> Values:
    """Bytes and packets of one interface, by its name on the node, inside, or by its MAC."""
    found = domain.find_running(call.office.node, dom)
    macs = {card.ifname: card.mac for card in found.config.network.interfaces or ()}
    for each in traffic.by_card(call.office.node, found.env.uuid):
        if path.lower() in (each.host_name, each.name, macs.get(each.name, "").lower()):
            return {
                "rx_bytes": each.bytes_in, "rx_packets": each.packets_in, "rx_errs": 0,
                "rx_drop": 0, "tx_bytes": each.bytes_out, "tx_packets": each.packets_out,
                "tx_errs": 0, "tx_drop": 0,
            }  # fmt: skip
    raise Failure(failure.INVALID_ARGUMENT, f"{found.env.name} has no interface '{path}'")


def domain_block_stats(call: Call, *, dom: Key, path: str) -> Values:
    """Bytes that its disks have moved, all of them together of a container; there no requests."""
    found = domain.find_running(call.office.node, dom)
    if is_machine(found):
        one = machineblock.of_one(call.office.node, found, path)
        return {"rd_req": one.reads, "rd_bytes": one.read, "wr_req": one.writes,
                "wr_bytes": one.written, "errs": -1}  # fmt: skip
    if path:
        containerdisk.find(found, path)
    usage = call.office.node.cgroups.usage(found.env.uuid)
    read, written = usage.io_read or 0, usage.io_written or 0
    return {"rd_req": -1, "rd_bytes": read, "wr_req": -1, "wr_bytes": written, "errs": -1}


def domain_block_stats_flags(
    call: Call, *, dom: Key, path: str, nparams: int, flags: int
) -> Values:
    """The same as typed parameters."""
    _ = flags
    values = domain_block_stats(call, dom=dom, path=path)
    names = {"rd_operations": "rd_req", "rd_bytes": "rd_bytes", "wr_operations": "wr_req",
             "wr_bytes": "wr_bytes"}  # fmt: skip
    found = [Typed(name, ULLONG, values[word]) for name, word in names.items() if values[word] >= 0]
    return {"params": found[:nparams], "nparams": len(found)}


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
    found = domain.find_running(call.office.node, dom)
    usage = call.office.node.cgroups.usage(found.env.uuid)
    limit, used = domainxml.memory_limit(found), usage.memory or 0
    values = {ACTUAL: limit, AVAILABLE: limit, UNUSED: limit - used, RSS: used,
              USABLE: limit - used}  # fmt: skip
    stats = [{"tag": tag, "val": max(0, value) // KIB} for tag, value in values.items()]
    return {"stats": stats[:maxStats]}


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
        found += [
            Typed(f"net.{number}.name", STRING, row.host_name),
            Typed(f"net.{number}.rx.bytes", ULLONG, row.bytes_in),
            Typed(f"net.{number}.rx.pkts", ULLONG, row.packets_in),
            Typed(f"net.{number}.tx.bytes", ULLONG, row.bytes_out),
            Typed(f"net.{number}.tx.pkts", ULLONG, row.packets_out),
        ]
    return [Typed("net.count", UINT, len(rows)), *found]


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
