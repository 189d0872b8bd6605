"""The disks of a running machine copied into those of another QEMU, over NBD, while both are up.

The taking QEMU exports its (empty) disks to a socket of ours; the giving one has a socket that
leads there, and mirrors each disk into it: first what is allocated, then what is written meanwhile,
for as long as it runs.  When it stands still, the mirrors are ended: both are the same then.

No path and no port: both QEMUs get their sockets as descriptors.
Source: QEMU, docs/interop/live-block-operations.rst; qapi/block-core.json.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from pyvz.errors import MonitorError, Timeout, VZError
from pyvz.vm.monitor import Monitor

SERVER: Final = "nbd"  # name of the descriptor of the listening socket
_POLL: Final = 0.05
_END: Final = 300.0  # seconds without a byte more, after which a mirror is given up


class Target(NamedTuple):
    """A new, empty image of this node that a disk is mirrored into.

    descriptor: open for writing.  secret: QEMU's object with its key.  offset: where in it the
    disk begins, in bytes.
    """

    descriptor: int
    format: str
    secret: str = ""
    offset: int = 0


class Amount(NamedTuple):
    """How far mirrors are: bytes; ready: what is left is only what is being written."""

    done: int
    total: int
    ready: bool


def export(monitor: Monitor, listening: socket.socket, names: tuple[str, ...]) -> None:
    """Have QEMU serve the disks NAMES, writable, to who connects to a LISTENING socket."""
    monitor.give(listening.fileno(), SERVER)
    address = {"type": "fd", "data": {"str": SERVER}}
    monitor.execute("nbd-server-start", {"addr": address, "max-connections": len(names)})
    for name in names:
        export = {"type": "nbd", "id": _node(name), "node-name": name, "name": name}
        monitor.execute("block-export-add", export | {"writable": True})


def withdraw(monitor: Monitor) -> None:
    """End the exports; raises MonitorError."""
    monitor.execute("nbd-server-stop")


def begin(monitor: Monitor, name: str, sock: socket.socket, *, whole: bool) -> None:
    """Mirror the disk NAME into the export of its name at the other end of SOCK.

    whole: also what lies in images below.  Else what the image does not have is left out, which is
    right for a target that is new and has nothing, too.
    """
    node = _node(name)
    monitor.give(sock.fileno(), node)
    target = {"driver": "nbd", "node-name": node, "server": {"type": "fd", "str": node}}
    target |= {"export": name, "discard": "unmap", "detect-zeroes": "unmap"}
    monitor.execute("blockdev-add", target)
    _mirror(monitor, name, whole=whole)


def begin_here(monitor: Monitor, name: str, target: Target) -> None:
    """Mirror the disk NAME into a new, empty image of this node."""
    path = monitor.add_file(target.descriptor)
    node = _node(name)
    # The file has no name of its own, so that it goes with the image.
    words: dict[str, Any] = {"driver": target.format, "node-name": node, "discard": "unmap"}
    words |= {"file": {"driver": "file", "filename": path}, "detect-zeroes": "unmap"}
    if target.format == "qcow2":
        words["backing"] = None
    if target.secret:
        words["encrypt"] = {"format": "luks", "key-secret": target.secret}
    if target.offset:
        words["offset"] = target.offset
    try:
        monitor.execute("blockdev-add", words)
    finally:
        monitor.remove_file(path)
    _mirror(monitor, name, whole=True)


def _mirror(monitor: Monitor, name: str, *, whole: bool) -> None:
    node = _node(name)
    job: dict[str, Any] = {"job-id": node, "device": name, "target": node}
    job |= {"sync": "full" if whole else "top", "on-source-error": "report"}
    try:
        monitor.execute("blockdev-mirror", job | {"on-target-error": "report"})
    except BaseException:
        drop(monitor, name)
        raise


def amount(monitor: Monitor, names: tuple[str, ...]) -> Amount:
    """Return how far the mirrors of NAMES are; raises MonitorError when one has ended."""
    jobs = {str(job["device"]): job for job in monitor.execute("query-block-jobs")}
    done = total = 0
    ready = True
    for name in names:
        job = jobs.get(_node(name))
        if job is None or job.get("error"):
            raise MonitorError(f"The copy of {name} failed", details=_why(monitor, name))
        done += int(job["offset"])
        total += int(job["len"])
        ready = ready and bool(job["ready"])
    return Amount(done, total, ready)


def _why(monitor: Monitor, name: str) -> str:
    event = monitor.recent("BLOCK_JOB_COMPLETED", lambda data: data.get("device") == _node(name))
    return str(event.get("error", "")) if event else ""


def finish(monitor: Monitor, names: tuple[str, ...], poll: Callable[[], None]) -> None:
    """End the mirrors of a machine that stands still: afterwards both disks are the same.

    Raises MonitorError, Timeout.
    """
    for name in names:
        monitor.execute("block-job-cancel", {"device": _node(name)})
    last, moved, told = -1, time.monotonic(), monitor.told
    while jobs := _running(monitor, names):
        poll()
        done = sum(int(job["current-progress"]) for job in jobs)
        if done != last:
            last, moved = done, time.monotonic()
        elif time.monotonic() - moved > _END:
            raise Timeout("The last blocks of a disk were not taken in time")
        monitor.doze(_POLL, told)
        told = monitor.told
    for name in names:
        if why := _why(monitor, name):
            raise MonitorError(f"The copy of {name} failed at its end", details=why)
        monitor.execute("blockdev-del", {"node-name": _node(name)})


def _running(monitor: Monitor, names: tuple[str, ...]) -> list[dict[str, Any]]:
    ours = {_node(name) for name in names}
    return [job for job in monitor.execute("query-jobs") if job["id"] in ours]


def drop(monitor: Monitor, name: str) -> None:
    """Take away what there is of a mirror, whatever its state; the machine goes on as it is."""
    node = _node(name)
    with suppress(VZError):
        monitor.execute("block-job-cancel", {"device": node, "force": True})
    deadline = time.monotonic() + _END
    with suppress(VZError):
        while _running(monitor, (name,)) and time.monotonic() < deadline:
            time.sleep(_POLL)
        monitor.execute("blockdev-del", {"node-name": node})
    with suppress(VZError):
        monitor.execute("closefd", {"fdname": node})


def names_of(monitor: Monitor) -> tuple[str, ...]:
    """Return the disks that have a mirror, or what is left of one."""
    nodes = monitor.execute("query-named-block-nodes", {"flat": True})
    found = (str(node["node-name"]) for node in nodes)
    return tuple(name.removeprefix(_PREFIX) for name in found if name.startswith(_PREFIX))


_PREFIX: Final = "mirror-"


def _node(name: str) -> str:
    """Return how the far end of a disk is called, and all that belongs to it."""
    return f"{_PREFIX}{name}"


def listen(path: os.PathLike[str]) -> socket.socket:
    """Return a socket that listens at PATH, which only root can reach."""
    made = socket.socket(socket.AF_UNIX)
    try:
        made.bind(os.fspath(path))
        made.listen(16)
    except BaseException:
        made.close()
        raise
    return made
