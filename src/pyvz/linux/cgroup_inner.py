"""The cgroups that a container has made inside its own: their limits, kept over a dump.

CRIU makes the directories of the cgroup2 tree again, with their owners, but neither the limits of
its controllers (it knows those of v1) nor the owners of the files in them; and what the topmost
one, which is ours, gives to those below it, it leaves alone.  What is saved comes from the kernel's
files of a hostile container's cgroups and goes back to just those.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from pyvz.linux import cgroupfs
from pyvz.linux.cgroup_tree import DELEGATABLE, SESSION_LEAF

# file -> what a fresh cgroup has.  Source: Documentation/admin-guide/cgroup-v2.rst
LIMITS = {
    "cpu.weight": "100",
    "cpu.max": "max 100000",
    "cpu.idle": "0",
    "memory.min": "0",
    "memory.low": "0",
    "memory.high": "max",
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.swap.high": "max",
    "memory.oom.group": "0",
    "pids.max": "max",
    "io.weight": "default 100",
    "io.max": "",
    "cpuset.cpus": "",
    "cpuset.mems": "",
}
_CONTROL = "cgroup.subtree_control"
_DELEGATED = ("cgroup.procs", "cgroup.threads", _CONTROL)
_MOST = 8192  # cgroups; linux/cgroup_tree.py allows a container no more

Saved = dict[str, dict[str, str]]


def save(top: str) -> Saved:
    """Return what differs from a fresh cgroup in every cgroup below TOP, by its path from there.

    Of TOP itself, "", only the controllers of those below it: its limits are the node's.
    """
    enabled = cgroupfs.read(f"{top}/{_CONTROL}")
    found: Saved = {"": {_CONTROL: enabled}} if enabled else {}
    for path in _below(top):
        texts = {}
        for file, fresh in {**LIMITS, _CONTROL: ""}.items():
            text = cgroupfs.read(f"{top}/{path}/{file}")
            if text is not None and text != fresh:
                texts[file] = text
        if texts:
            found[path] = texts
    return found


def restore(top: str, saved: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Put back what `save` has found; returns the files that this kernel refused."""
    refused = []
    there = set(_below(top))
    for path, texts in saved.items():
        for file, text in texts.items():
            if path in there and file in LIMITS:
                for line in text.splitlines() or [text]:
                    try:
                        cgroupfs.write_if_there(f"{top}/{path}/{file}", line)
                    except OSError:
                        refused.append(f"{path}/{file}")
    return refused


def passes_on(saved: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether a cgroup had given controllers to those below it."""
    return any(_CONTROL in texts for texts in saved.values())


def enable(top: str, saved: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Enable the controllers that TOP and the cgroups below it had given to those below them.

    While no process is in those (none may be beside a cgroup that is given a controller), and
    before a program opens a file of a controller again: systemd watches memory.events.
    Returns what this kernel refused.
    """
    refused = []
    for path in ("", *_below(top)):
        for controller in saved.get(path, {}).get(_CONTROL, "").split():
            try:
                cgroupfs.write_if_there(f"{top}/{path}/{_CONTROL}", f"+{controller}")
            except OSError:
                refused.append(f"{path}/{_CONTROL}: {controller}")
    return refused


def own(top: str, before: tuple[int, int], first: int) -> None:
    """Give TOP, the cgroups below it and their files owners, before anything inside opens them.

    CRIU gives the directories the ids that they had on the node of the dump: of the range `before`
    (first id, count), which is the one from `first` on here.
    The kernel gives the files of a cgroup to who makes it: what CRIU made is the node's.  Who could
    make it is who owns the one above.  A program that holds memory.pressure open (systemd since
    254) could not get it again.
    """
    _shift(top, before, first)
    for path in _below(top):
        directory = f"{top}/{path}"
        with contextlib.suppress(FileNotFoundError):
            _shift(directory, before, first)
            maker = os.stat(os.path.dirname(directory))
            if maker.st_uid == 0:
                continue
            for entry in os.scandir(directory):
                if entry.is_file(follow_symlinks=False):
                    os.chown(entry.path, maker.st_uid, maker.st_gid)
    give_back(top)


def _shift(directory: str, before: tuple[int, int], first: int) -> None:
    start, count = before
    found = os.stat(directory)
    ids = [
        each - start + first if start <= each < start + count else -1  # -1: stays
        for each in (found.st_uid, found.st_gid)
    ]
    if start != first and ids != [-1, -1]:
        os.chown(directory, *ids)


def give_back(top: str) -> None:
    """Let who owns a cgroup below TOP manage it again: the files that delegation is about."""
    files = dict.fromkeys((*_DELEGATED, *(cgroupfs.read(DELEGATABLE) or "").split()))
    for path in _below(top):
        directory = f"{top}/{path}"
        with contextlib.suppress(FileNotFoundError):
            owner = os.stat(directory)
            if owner.st_uid == 0:
                continue
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    os.chown(f"{directory}/{file}", owner.st_uid, owner.st_gid)


def _below(top: str) -> Iterator[str]:
    """Yield the cgroups below TOP, outer ones first, without the node's own leaf."""
    waiting = [name for name in cgroupfs.children(top) if name != SESSION_LEAF]
    count = 0
    while waiting and count < _MOST:
        path = waiting.pop(0)
        count += 1
        yield path
        waiting += [f"{path}/{name}" for name in cgroupfs.children(f"{top}/{path}")]
