"""The disks of a machine as they were at one moment, to be read while it goes on; and what changed
since an earlier moment.

    disk hdd0 <- shadow-hdd0 (qcow2): keeps what is overwritten from that moment on
    NBD export hdd0 of the shadow: reads as the disk did

QEMU calls it image fleecing.  A dirty bitmap is begun in the same transaction: it tells the next
time which blocks have been written since.  It is kept in the qcow2 image; one of another image is
in QEMU's memory and ends with it, so that what is there can be relied upon.  Bitmaps are called by
the backup that they go on from.  Everything is the same in a storage daemon, for a machine that
does not run; there nothing is overwritten, and no shadow is needed.
Source: QEMU, docs/interop/bitmaps.rst, docs/tools/qemu-img.rst (x-dirty-bitmap).
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyvz.errors import CommandFailed, MonitorError, VZError
from pyvz.linux.extents import Range
from pyvz.linux.run import run
from pyvz.vm.monitor import Monitor

SERVER: Final = "moment"  # name of the descriptor of the listening socket
_PREFIX: Final = "pyvz-backup-"
_SHADOW: Final = "shadow-"
STILL: Final = "pyvz-still"  # bitmap of what had changed at the moment
_POLL: Final = 0.05
_END: Final = 60.0  # seconds for a job to end that was called off
_MAP: Final = 3600.0

Execute = Callable[[str, dict[str, Any]], Any]


class View(NamedTuple):
    """A disk as NBD shows it.  since: bitmap that tells what changed, "": all has to be read.

    name: of the export, "": as the disk; still: what the exported copy of that bitmap is called.
    """

    export: str
    since: str
    name: str = ""
    still: str = STILL


class Mark(NamedTuple):
    """A dirty bitmap to begin.  kept: in the image, else it ends with QEMU."""

    name: str
    kept: bool = True


class Bitmap(NamedTuple):
    """A dirty bitmap.  good: it can be relied upon; written: bytes that it says were written."""

    good: bool
    written: int


def bitmap(reference: str) -> str:
    """Return the name of the bitmap of what changed since the backup of that REFERENCE."""
    return _PREFIX + hashlib.sha256(reference.encode()).hexdigest()[:24]


def bitmaps(execute: Execute, node: str) -> dict[str, bool]:
    """Return our bitmaps of a disk, and whether each can be relied upon."""
    found = every_bitmap(execute, node)
    return {name: each.good for name, each in found.items() if name.startswith(_PREFIX)}


def every_bitmap(execute: Execute, node: str) -> dict[str, Bitmap]:
    """Return all bitmaps of a disk by their names."""
    found: dict[str, Bitmap] = {}
    for each in execute("query-named-block-nodes", {"flat": True}):
        if each["node-name"] == node:
            for row in each.get("dirty-bitmaps", ()):
                good = not row.get("inconsistent") and row["recording"]
                found[str(row.get("name", ""))] = Bitmap(bool(good), int(row["count"]))
    return found


def drop_bitmaps(execute: Execute, node: str, *, keep: str = "") -> None:
    """Remove our bitmaps of a disk, but KEEP; one that stays only costs a little."""
    for name in bitmaps(execute, node):
        if name != keep:
            with suppress(VZError):
                execute("block-dirty-bitmap-remove", {"node": node, "name": name})


def added(node: str, mark: Mark) -> dict[str, Any]:
    """Return the action (of a transaction) that begins a bitmap."""
    data = {"node": node, "name": mark.name, "persistent": mark.kept}
    return {"type": "block-dirty-bitmap-add", "data": data}


def stilled(node: str, since: str, still: str = STILL) -> list[dict[str, Any]]:
    """Return the actions that keep what a bitmap tells at that moment; none without one.

    A bitmap that is being written cannot be exported beside a disk that is only read.
    """
    if not since:
        return []
    made = {"node": node, "name": still, "disabled": True}
    merged = {"node": node, "target": still, "bitmaps": [since]}
    return [
        {"type": "block-dirty-bitmap-add", "data": made},
        {"type": "block-dirty-bitmap-merge", "data": merged},
    ]


def shadow(monitor: Monitor, name: str, descriptor: int) -> None:
    """Lay a shadow over the disk NAME of a machine that runs, in an open, empty qcow2 image."""
    path = monitor.add_file(descriptor)
    node = _SHADOW + name
    try:
        file = {"driver": "file", "node-name": f"{node}-file", "filename": path}
        monitor.execute("blockdev-add", file)
        image = {"driver": "qcow2", "node-name": node, "file": f"{node}-file", "backing": name}
        monitor.execute("blockdev-add", image)
    finally:
        monitor.remove_file(path)


def begin(monitor: Monitor, views: tuple[View, ...], marks: Mapping[str, Mark]) -> None:
    """Make it the moment for disks that have shadows; MARKS: bitmaps to begin, by disk."""
    actions = [added(name, mark) for name, mark in marks.items()]
    for view in views:
        name = view.export
        actions += stilled(name, view.since, view.still)
        job = {"job-id": _SHADOW + name, "device": name, "target": _SHADOW + name, "sync": "none"}
        actions.append({"type": "blockdev-backup", "data": job})
    monitor.execute("transaction", {"actions": actions})


def export(monitor: Monitor, listening: socket.socket, views: tuple[View, ...]) -> None:
    """Serve the shadows to who connects to a LISTENING socket."""
    monitor.give(listening.fileno(), SERVER)
    address = {"type": "fd", "data": {"str": SERVER}}
    monitor.execute("nbd-server-start", {"addr": address})
    for view in views:
        monitor.execute("block-export-add", exported(view, _SHADOW + view.export))


def exported(view: View, node: str) -> dict[str, Any]:
    """Return the export of a block node."""
    words = {"type": "nbd", "id": f"moment-{view.export}", "node-name": node}
    words["name"] = view.name or view.export
    return words | ({"bitmaps": [view.still]} if view.since else {})


def shadows(monitor: Monitor) -> frozenset[str]:
    """Return the disks that have a shadow which keeps what is overwritten."""
    return frozenset(job.removeprefix(_SHADOW) for job in _jobs(monitor))


def end(monitor: Monitor, stills: Collection[str] = (STILL,)) -> None:
    """Take away exports, shadows and the copied bitmaps STILLS, whatever there is.  Repeatable.

    The machine goes on.
    """
    with suppress(VZError):
        monitor.execute("nbd-server-stop")
    with suppress(VZError):
        for job in _jobs(monitor):
            with suppress(VZError):
                monitor.execute("block-job-cancel", {"device": job, "force": True})
        deadline = time.monotonic() + _END
        while _jobs(monitor) and time.monotonic() < deadline:
            time.sleep(_POLL)
        nodes = monitor.execute("query-named-block-nodes", {"flat": True})
        # The image first, then the file below it.
        for node in sorted(str(each["node-name"]) for each in nodes):
            if node.startswith(_SHADOW):
                with suppress(VZError):
                    monitor.execute("blockdev-del", {"node-name": node})
        for each in nodes:
            for row in each.get("dirty-bitmaps", ()):
                if row.get("name") in stills and not (row["persistent"] or row["recording"]):
                    words = {"node": each["node-name"], "name": row["name"]}
                    with suppress(VZError):
                        monitor.execute("block-dirty-bitmap-remove", words)


def _jobs(monitor: Monitor) -> list[str]:
    return [str(j["id"]) for j in monitor.execute("query-jobs") if j["id"].startswith(_SHADOW)]


def changed(path: Path, view: View) -> list[Range]:
    """Return what was written to a disk since the bitmap of its VIEW began; raises MonitorError."""
    words = {
        **{"driver": "nbd", "export": view.export, "server.type": "unix"},
        **{"server.path": os.fspath(path), "x-dirty-bitmap": f"qemu:dirty-bitmap:{STILL}"},
    }
    options = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in words.items())
    try:
        told = run(["qemu-img", "map", "--output=json", "--image-opts", options], timeout=_MAP)
        # With x-dirty-bitmap, "data" is said to be false where the bitmap is dirty.
        rows = json.loads(told.stdout)
        return [Range(int(row["start"]), int(row["length"])) for row in rows if not row["data"]]
    except (CommandFailed, ValueError, KeyError, TypeError) as error:
        raise MonitorError(
            f"What changed on {view.export} cannot be read", details=str(error)
        ) from error
