"""The disks of a running machine copied, as they were at one moment, into images of others.

    disk hdd0 -- blockdev-backup --> push-hdd0 (qcow2, raw)      libvirt's backup in push mode

QEMU writes the images itself: whole ones, or only what a dirty bitmap says was written since it
began.  The images have nothing below them, and are given as descriptors.  The bitmap is copied
(pyvz-push) in the same transaction, so that it goes on telling.
Source: QEMU, docs/interop/bitmaps.rst, docs/interop/live-block-operations.rst.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from pyvz.errors import MonitorError, VZError
from pyvz.vm import moment
from pyvz.vm.blockjob import Amount
from pyvz.vm.moment import Mark
from pyvz.vm.monitor import Monitor

STILL: Final = "pyvz-push"  # bitmap of what had changed at the moment
_PREFIX: Final = "push-"
_POLL: Final = 0.05
_END: Final = 60.0  # seconds for a job to end that was called off
_DONE: Final = "concluded"  # status of a job that waits for its dismissal


class Target(NamedTuple):
    """Where a disk goes.  since: bitmap that tells what is copied, "": all of it."""

    disk: str
    format: str
    since: str = ""


def lay(monitor: Monitor, target: Target, descriptor: int) -> None:
    """Make the image that is open as DESCRIPTOR the one that a disk is copied into."""
    node = _PREFIX + target.disk
    path = monitor.add_file(descriptor)
    try:
        file = {"driver": "file", "node-name": f"{node}-file", "filename": path}
        monitor.execute("blockdev-add", file)
        image: dict[str, Any] = {"driver": target.format, "node-name": node, "file": f"{node}-file"}
        image |= {"backing": None} if target.format == "qcow2" else {}
        monitor.execute("blockdev-add", image)
    finally:
        monitor.remove_file(path)


def begin(monitor: Monitor, targets: tuple[Target, ...], marks: Mapping[str, Mark]) -> None:
    """Make it the moment; MARKS: bitmaps that begin at it, by disk.  Raises MonitorError."""
    actions = [moment.added(disk, mark) for disk, mark in marks.items()]
    for target in targets:
        actions += moment.stilled(target.disk, target.since, STILL)
        actions.append({"type": "blockdev-backup", "data": _job(target)})
    monitor.execute("transaction", {"actions": actions})


def _job(target: Target) -> dict[str, Any]:
    node = _PREFIX + target.disk
    job: dict[str, Any] = {"job-id": node, "device": target.disk, "target": node}
    job |= {"on-source-error": "report", "on-target-error": "report", "auto-dismiss": False}
    if not target.since:
        return job | {"sync": "full"}
    return job | {"sync": "bitmap", "bitmap": STILL, "bitmap-mode": "never"}


def amount(monitor: Monitor, targets: tuple[Target, ...]) -> Amount:
    """Return how far the copies are; raises MonitorError when one has failed."""
    jobs = {str(job["id"]): job for job in monitor.execute("query-jobs")}
    found = []
    for target in targets:
        job = jobs.get(_PREFIX + target.disk)
        if job is None or job.get("error"):
            why = str(job["error"]) if job else "QEMU knows nothing of it"
            raise MonitorError(f"The copy of {target.disk} failed", details=why)
        found.append(job)
    done = sum(int(job["current-progress"]) for job in found)
    total = sum(int(job["total-progress"]) for job in found)
    return Amount(done, total, all(job["status"] == _DONE for job in found))


def end(monitor: Monitor) -> None:
    """Take away jobs, images and the copied bitmaps, whatever there is.  Repeatable."""
    with suppress(VZError):
        _end_jobs(monitor)
        nodes = monitor.execute("query-named-block-nodes", {"flat": True})
        # The image first, then the file below it.
        for name in sorted(str(each["node-name"]) for each in nodes):
            if name.startswith(_PREFIX):
                with suppress(VZError):
                    monitor.execute("blockdev-del", {"node-name": name})
        for each in nodes:
            if any(row.get("name") == STILL for row in each.get("dirty-bitmaps", ())):
                words = {"node": each["node-name"], "name": STILL}
                with suppress(VZError):
                    monitor.execute("block-dirty-bitmap-remove", words)


def _end_jobs(monitor: Monitor) -> None:
    deadline = time.monotonic() + _END
    while (jobs := _jobs(monitor)) and time.monotonic() < deadline:
        for job in jobs:
            command = "job-dismiss" if job["status"] == _DONE else "job-cancel"
            with suppress(VZError):
                monitor.execute(command, {"id": job["id"]})
        time.sleep(_POLL)


def _jobs(monitor: Monitor) -> list[dict[str, Any]]:
    return [job for job in monitor.execute("query-jobs") if job["id"].startswith(_PREFIX)]
