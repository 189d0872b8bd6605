"""What is being done with a domain, by whomever: its job, how far it is, and the end of it.

A job is a task of the daemon that takes its time: a migration, a suspension, a snapshot, a backup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from pyvz.errors import VZError
from pyvz.gateway import domain, failure
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.gateway.office import Job
from pyvz.gateway.xdr import BOOLEAN, INT, ULLONG, Typed
from pyvz.operations.node import Node

Key = dict[str, Any]

NONE, BOUNDED, UNBOUNDED, DONE, FAILED = 0, 1, 2, 3, 4
COMPLETED: Final = 1  # flag: of the job that has ended

# The verb of a task -> libvirt's number of the operation.
OPERATIONS: Final[Mapping[str, int]] = {
    "domain_managed_save": 2, "suspend": 2, "domain_save": 2, "domain_save_flags": 2, "resume": 3,
    "migrate": 5, "domain_core_dump": 8, "domain_core_dump_with_format": 8,
    "domain_snapshot_create_xml": 6, "snapshot": 6, "snapshot-create": 6,
    "domain_revert_to_snapshot": 7, "snapshot-switch": 7, "backup": 9, "domain_backup_begin": 9,
    "domain_snapshot_delete": 10, "snapshot-delete": 10,
}  # fmt: skip
_AMOUNTS: Final = (
    "timeElapsed", "timeRemaining", "dataTotal", "dataProcessed", "dataRemaining", "memTotal",
    "memProcessed", "memRemaining", "fileTotal", "fileProcessed", "fileRemaining",
)  # fmt: skip


async def domain_get_job_info(call: Call, arguments: dict[str, Any]) -> Values:
    """The job that is under way, with what it has to move and has moved, in bytes."""
    job = await _job(call, arguments["dom"])
    found = dict.fromkeys(_AMOUNTS, 0) | {"type": NONE}
    if job is not None:
        done, total = _bytes(job)
        found |= {
            "type": _kind(job), "timeElapsed": int(job.seconds * 1000), "dataTotal": total,
            "dataProcessed": done, "dataRemaining": total - done,
        }  # fmt: skip
    return found


async def domain_get_job_stats(call: Call, arguments: dict[str, Any]) -> Values:
    """The same as typed parameters; with flag 1 of the last job that has ended."""
    if arguments["flags"] & COMPLETED:
        ended = await _job(call, arguments["dom"], call.office.ended())
        kind = {None: NONE, True: DONE, False: FAILED}[ended.succeeded if ended else None]
        return {"type": kind, "params": figures(ended) if ended else []}
    job = await _job(call, arguments["dom"])
    if job is None:
        return {"type": NONE, "params": []}
    return {"type": _kind(job), "params": figures(job)}


async def domain_abort_job(call: Call, arguments: dict[str, Any]) -> None:
    """Call the job off; it undoes itself."""
    job = await _job(call, arguments["dom"])
    if job is None:
        raise Failure(failure.OPERATION_INVALID, "no job is active on the domain")
    call.office.cancel(job)


def figures(job: Job) -> list[Typed]:
    """Return what clients show of a job."""
    found = [Typed("operation", INT, OPERATIONS.get(job.verb, 0))]
    found.append(Typed("time_elapsed", ULLONG, int(job.seconds * 1000)))
    if _kind(job) == BOUNDED:
        done, total = _bytes(job)
        amounts = {"data_total": total, "data_processed": done, "data_remaining": total - done}
        found += [Typed(name, ULLONG, value) for name, value in amounts.items()]
    if job.succeeded is not None:
        found.append(Typed("success", BOOLEAN, int(job.succeeded)))
    return found


async def _job(call: Call, dom: Key, among: Sequence[Job] | None = None) -> Job | None:
    """Return the first job of a domain, of those under way the oldest; raises Failure (42)."""
    every = call.office.jobs() if among is None else among
    jobs = [each for each in every if each.verb in OPERATIONS]
    return await call.office.query(partial(_of, call.office.node, dom, jobs))


def _of(node: Node, dom: Key, jobs: list[Job]) -> Job | None:
    uuid = domain.find(node, dom).env.uuid
    for job in jobs:
        with suppress(VZError):
            if node.registry.resolve(job.ref).uuid == uuid:
                return job
    return None


def _kind(job: Job) -> int:
    return BOUNDED if job.total and job.unit == "B" else UNBOUNDED


def _bytes(job: Job) -> tuple[int, int]:
    if _kind(job) != BOUNDED:
        return 0, 0
    total = job.total or 0
    return min(job.done or 0, total), total
