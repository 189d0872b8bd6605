"""Jobs of QEMU on one disk of a running machine: what is below it taken into it, or a copy of it.

    stream-hdd0     the image below hdd0 is read into it, and is below it no more
    copy-hdd0       hdd0 is mirrored into another image, until the job is ended

A job that has ended is there until it is taken away, so that nobody misses how.
Source: QEMU, docs/interop/live-block-operations.rst.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Final, NamedTuple

from pyvz.errors import MonitorError, VZError
from pyvz.vm.monitor import Monitor

STREAM: Final = "stream-"
COPY: Final = "copy-"
_POLL: Final = 0.05
_END: Final = 60.0  # seconds for a job to end that was called off
_DONE: Final = "concluded"  # status of a job that waits to be taken away


class Amount(NamedTuple):
    """How far a job is, or several: bytes; ended: all of it is done."""

    done: int
    total: int
    ended: bool


def stream(monitor: Monitor, disk: str, speed: int) -> None:
    """Begin to take what is below a disk into it; speed: bytes per second, 0: as fast as it goes.

    Raises MonitorError.
    """
    job = {"job-id": STREAM + disk, "device": disk, "speed": speed}
    monitor.execute("block-stream", job | {"on-error": "report", "auto-dismiss": False})


def copy(monitor: Monitor, disk: str, target: tuple[int, str], speed: int) -> None:
    """Begin to mirror a disk into an image; target: its descriptor, and its format.

    Raises MonitorError.
    """
    descriptor, form = target
    node, path = COPY + disk, monitor.add_file(descriptor)
    try:
        file = {"driver": "file", "node-name": f"{node}-file", "filename": path}
        monitor.execute("blockdev-add", file)
        image: dict[str, Any] = {"driver": form, "node-name": node, "file": f"{node}-file"}
        image |= {"backing": None} if form == "qcow2" else {}
        monitor.execute("blockdev-add", image)
    finally:
        monitor.remove_file(path)
    job: dict[str, Any] = {"job-id": node, "device": disk, "target": node, "sync": "full"}
    job |= {"speed": speed, "on-source-error": "report", "on-target-error": "report"}
    monitor.execute("blockdev-mirror", job | {"auto-dismiss": False})


def amount(monitor: Monitor, name: str) -> Amount:
    """Return how far the job NAME is; raises MonitorError when it was called off or has failed."""
    job = _find(monitor, name)
    if job is None or job.get("error"):
        why = str(job["error"]) if job else "QEMU knows nothing of it"
        raise MonitorError(f"The job {name} was not done: {why}")
    done, total = int(job["current-progress"]), int(job["total-progress"])
    return Amount(done, total, job["status"] == _DONE)


def disk_of(monitor: Monitor, disk: str) -> str | None:
    """Return the job of ours that is on a disk; None when there is none."""
    return next((name for name in (STREAM + disk, COPY + disk) if _find(monitor, name)), None)


def cancel(monitor: Monitor, name: str) -> bool:
    """End a job and wait until it has ended; raises MonitorError.

    Returns whether it is seen to have done what it was for: a copy that is whole stays whole.
    """
    monitor.execute("block-job-cancel", {"device": name})
    deadline = time.monotonic() + _END
    while (job := _find(monitor, name)) is not None and job["status"] != _DONE:
        if time.monotonic() > deadline:
            raise MonitorError(f"The job {name} did not end in time")
        time.sleep(_POLL)
    return job is not None and not job.get("error")


def set_speed(monitor: Monitor, name: str, speed: int) -> None:
    """Limit a job to SPEED bytes per second; 0: no limit."""
    monitor.execute("block-job-set-speed", {"device": name, "speed": speed})


def end(monitor: Monitor, disk: str) -> None:
    """Take away the jobs of ours on a disk and their images, whatever there is.  Repeatable."""
    deadline = time.monotonic() + _END
    with suppress(VZError):
        while (name := disk_of(monitor, disk)) is not None and time.monotonic() < deadline:
            job = _find(monitor, name)
            done = job is not None and job["status"] == _DONE
            with suppress(VZError):
                monitor.execute("job-dismiss" if done else "job-cancel", {"id": name})
            time.sleep(_POLL)
    for node in (COPY + disk, f"{COPY}{disk}-file"):
        with suppress(VZError):
            monitor.execute("blockdev-del", {"node-name": node})


def _find(monitor: Monitor, name: str) -> dict[str, Any] | None:
    return next((job for job in monitor.execute("query-jobs") if job["id"] == name), None)
