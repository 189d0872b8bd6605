"""Events of domains: what an event of the bus (model/event.py) is to libvirt's clients.

Of the life cycle it is a pair of numbers, or several (reference/libvirt-rpc.md, 3.1).  A device is
called as its <alias> in the description of the running domain.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pyvz.gateway import calls_job, machinexml
from pyvz.gateway.domain import Domain
from pyvz.gateway.office import Job
from pyvz.gateway.xdr import Typed
from pyvz.model import event as names
from pyvz.model.event import Event

LIFECYCLE, REBOOT, BLOCK_JOB_OF_PATH, TRAY, BALLOON, REMOVED, BLOCK_JOB = 0, 1, 8, 10, 13, 15, 16
AGENT, ADDED, JOB_ENDED, METADATA = 18, 19, 21, 23

# name on the bus -> (event, detail) of the life cycle
LIFE: Final[Mapping[str, tuple[int, int]]] = {
    "ve-create": (0, 0),
    "ve-register": (0, 0),
    "ve-config": (0, 1),
    "ve-rename": (0, 2),
    "ve-delete": (1, 0),
    "ve-unregister": (1, 0),
    "ve-start": (2, 0),
    "ve-pause": (3, 0),
    "ve-suspend": (5, 4),
}
# Gone to another node, come from one; of one that was live on the way, and of a stopped one.
_MOVED: Final = {"ve-migrated": [(5, 3), (1, 0)], "ve-migrate": [(0, 0), (2, 1)]}
_MOVED_OFF: Final = {"ve-migrated": [(1, 0)], "ve-migrate": [(0, 0)]}
_STOPPED: Final = {"killed": (5, 1), "oom": (5, 2)}  # by the reason; (5, 0): shut down
_RESUMED: Final = {"suspended": (2, 2), "snapshot": (2, 3)}  # by what it was; (4, 0): unpaused
# A machine goes back to a snapshot: what ran has ended, what is in the snapshot's memory runs.
_LEFT, _BACK = (5, 6), (2, 3)

_DESCRIPTION: Final = 0  # kind of metadata
_FROM_CHANNEL: Final = 2  # why an agent's state is another
_BLOCK_JOBS: Final = {"stream": 1, "mirror": 2, "commit": 3, "backup": 5}
_BLOCK_STATES: Final = {"completed": 0, "failed": 1, "cancelled": 2, "ready": 3}
_MOST_BYTES: Final = (1 << 63) - 1


class Told(NamedTuple):
    """A message for clients that wait for events NUMBER; the domain is put to its body.

    nested: the older form, in which both are one structure.
    """

    number: int
    message: str
    body: Mapping[str, Any]
    nested: bool = False


def told(event: Event) -> Iterator[Told]:
    """Yield what clients are told of an event of the bus, in its order."""
    for number, detail in life(event):
        body = {"event": number, "detail": detail}
        yield Told(LIFECYCLE, "domain_event_callback_lifecycle", body, nested=True)
    if event.name == names.REBOOT:
        yield Told(REBOOT, "domain_event_callback_reboot", {}, nested=True)
    elif event.name == names.CONFIG:
        yield from _of_change(event)
    elif event.name == names.METADATA:
        uri = str(event.data.get("uri", "")) or None
        yield _of_metadata(_number(event, "type"), uri)
    elif event.name in _OF_MACHINES:
        yield _OF_MACHINES[event.name](event)


def life(event: Event) -> Sequence[tuple[int, int]]:
    """Return what a client is told of the life cycle: event and detail, mostly one, or none."""
    if event.name == "ve-stop":
        return [_STOPPED.get(str(event.data.get("reason", "")), (5, 0))]
    if event.name == "ve-resume":
        return [_RESUMED.get(str(event.data.get("was", "")), (4, 0))]
    if event.name == "ve-snapshot-switch":
        both = ((_LEFT, "was"), (_BACK, "is"))
        return [pair for pair, word in both if event.data.get(word) == "running"]
    if event.name in _MOVED:
        moved = _MOVED if event.data.get("state") == "running" else _MOVED_OFF
        return moved[event.name]
    pair = LIFE.get(event.name)
    return [pair] if pair else []


def of_disks(messages: Sequence[Told], found: Domain) -> list[Told]:
    """Return messages with the disks of a machine called as clients know them.

    Of a block job there are two: with the name on the bus, and with the image.
    """
    disks = {drive.name: (drive, name) for drive, name in machinexml.drives(found)}
    made = []
    for each in messages:
        disk = disks.get(each.body["dst"]) if each.number == BLOCK_JOB else None
        if disk is None:
            made.append(each)
            continue
        drive, name = disk
        made.append(each._replace(body={**each.body, "dst": name}))
        image = machinexml.source(found, drive)
        if image is not None:
            body = {word: each.body[word] for word in ("type", "status")}
            body["path"] = os.fspath(image)
            message = "domain_event_callback_block_job"
            made.append(Told(BLOCK_JOB_OF_PATH, message, body, nested=True))
    return made


def ended(job: Job) -> Told:
    """Return what clients are told of a job that has ended."""
    params: Sequence[Typed] = calls_job.figures(job)
    return Told(JOB_ENDED, "domain_event_callback_job_completed", {"params": params})


def _of_change(event: Event) -> Iterator[Told]:
    if "identity.description" in str(event.data.get("fields", "")).split():
        yield _of_metadata(_DESCRIPTION, None)
    for name in str(event.data.get("removed", "")).split():
        message = "domain_event_callback_device_removed"
        yield Told(REMOVED, message, {"devAlias": name}, nested=True)
    for name in str(event.data.get("added", "")).split():
        yield Told(ADDED, "domain_event_callback_device_added", {"devAlias": name})


def _of_metadata(kind: int, uri: str | None) -> Told:
    body = {"type": kind, "nsuri": uri}
    return Told(METADATA, "domain_event_callback_metadata_change", body)


def _of_agent(event: Event) -> Told:
    state = 1 if event.data.get("state") == "connected" else 2
    body = {"state": state, "reason": _FROM_CHANNEL}
    return Told(AGENT, "domain_event_callback_agent_lifecycle", body)


def _of_tray(event: Event) -> Told:
    closed = int(event.data.get("state") != "open")
    body = {"devAlias": str(event.data.get("device", "")), "reason": closed}
    return Told(TRAY, "domain_event_callback_tray_change", body, nested=True)


def _of_balloon(event: Event) -> Told:
    body = {"actual": _number(event, "bytes") >> 10}
    return Told(BALLOON, "domain_event_callback_balloon_change", body, nested=True)


def _of_block_job(event: Event) -> Told:
    body = {
        "dst": str(event.data.get("device", "")),
        "type": _BLOCK_JOBS.get(str(event.data.get("type", "")), 0),
        "status": _BLOCK_STATES.get(str(event.data.get("state", "")), 1),
    }
    return Told(BLOCK_JOB, "domain_event_block_job_2", body)


_OF_MACHINES: Final = {
    names.VM_AGENT: _of_agent, names.VM_TRAY: _of_tray, names.VM_BALLOON: _of_balloon,
    names.VM_BLOCK_JOB: _of_block_job,
}  # fmt: skip


def _number(event: Event, name: str) -> int:
    text = str(event.data.get(name, ""))
    return min(int(text), _MOST_BYTES) if text.isascii() and text.isdigit() else 0
