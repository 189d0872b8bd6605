"""What has changed on the node since one last looked, as the kernel tells it: inotify(7) on every
file and directory that the state of an environment is read from, and the table of mounts.

    <conf>/<uuid>.conf        registered, renamed, gone         <run>/state/<uuid>.json   run state
    <etc>/vz.conf             everybody's defaults              <run>/vm/<uuid>/          machines
    <home>/*, <home>/dump/*   configuration, suspended state
    .../<uuid>/cgroup.events  frozen, thawed, ended

Files are replaced or written and closed, so a write alone is not looked at: QEMU writes all the
time.  Nothing here waits, or reads anything but memory of the kernel, when it is asked.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.linux import inotify
from pyvz.linux.inotify import Inotify
from pyvz.model.environment import NOTES, Environment, Kind, canonical_uuid
from pyvz.store.paths import Paths

ALL: Final = "*"  # in place of a UUID: anything may have changed
MOUNTS: Final = "mounts"  # something was mounted or unmounted

_TOLD_OF_MACHINES: Final = frozenset({"", Kind.VM.conf_name, "dump", "Dump", NOTES})

log = logging.getLogger(__name__)


class _Watch(NamedTuple):
    """What is watched.  place: conf, shared, state, machines; of one environment: home, group."""

    place: str
    uuid: str = ""
    kind: Kind = Kind.CT


class Changes:
    """The watches of one node.  Raises OSError where the kernel gives none.

    One thread may add watches while another one drains.
    """

    def __init__(self, paths: Paths) -> None:
        self._inotify = Inotify()
        self._watches: dict[int, _Watch] = {}
        self._of: dict[str, set[int]] = {}  # by UUID
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._inotify.fd, select.POLLIN)
        self._poll.register(self._mounts, select.POLLPRI)
        own = {"state": paths.run / "state", "machines": paths.run / "vm"}
        for place, directory in own.items():
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._watch(directory, _Watch(place))
        self._watch(paths.conf, _Watch("conf"))
        self._watch(paths.vz_conf.parent, _Watch("shared"))

    def follow(self, env: Environment) -> bool:
        """Watch the home of an environment from now on; False when that cannot be."""
        with suppress(OSError):
            watch = _Watch("home", env.uuid, env.kind)
            if env.conf.is_symlink():  # its content is somewhere else
                return False
            self._watch(env.home, watch)
            with suppress(FileNotFoundError):
                self._watch(env.home / "dump", watch)
            return True
        return False

    def follow_group(self, uuid: str, events_file: str) -> bool:
        """Watch the control group of a running one; False when it has none."""
        with suppress(OSError):
            self._watch(events_file, _Watch("group", uuid), inotify.MODIFY | inotify.DELETE_SELF)
            return True
        return False

    def leave(self, uuid: str) -> None:
        """Watch nothing of that environment any more."""
        for number in self._of.pop(uuid, ()):
            if self._watches.pop(number, None) is not None:
                self._inotify.remove(number)

    def drain(self) -> set[str]:
        """Return what has changed since the last time: UUIDs, MOUNTS, ALL."""
        ready = self._poll.poll(0)
        if not ready:
            return set()
        found: set[str] = set()
        for fd, _ in ready:
            if fd == self._mounts:
                found.add(MOUNTS)
            else:
                found.update(self._meanings(self._inotify.read()))
        return found

    def close(self) -> None:
        """Watch nothing any more."""
        self._inotify.close()
        os.close(self._mounts)

    def _meanings(self, changes: Iterable[inotify.Change]) -> set[str]:
        found: set[str] = set()
        for change in changes:
            if change.mask & inotify.OVERFLOW:
                found.add(ALL)
                continue
            watch = self._watches.get(change.watch)
            if change.mask & inotify.IGNORED:
                self._watches.pop(change.watch, None)
                if watch is not None:
                    found.add(watch.uuid or ALL)
            elif watch is None:  # just being added, by another thread
                found.add(ALL)
            elif subject := _subject(watch, change.name):
                found.add(subject)
        return found

    def _watch(self, path: str | Path, watch: _Watch, mask: int = inotify.ENTRIES) -> None:
        number = self._inotify.add(path, mask)
        known = self._watches.get(number)
        if known is not None and known != watch:
            raise OSError(f"{path} is watched as {known} already")  # two homes in one place
        self._watches[number] = watch
        if watch.uuid:
            self._of.setdefault(watch.uuid, set()).add(number)


def _subject(watch: _Watch, name: str) -> str:
    """Return whom a change is about, "" when it means nothing."""
    if watch.place == "home":
        own = watch.kind is not Kind.VM or name in _TOLD_OF_MACHINES
        return watch.uuid if own else ""
    if watch.place == "group":
        return watch.uuid
    if watch.place == "shared":
        return ALL if name in {"", "vz.conf"} else ""
    if watch.place == "conf" and name and not name.endswith(".conf"):
        return ""  # samples, files on the way
    stem = name if watch.place == "machines" else name.rpartition(".")[0]
    return canonical_uuid(stem) or (ALL if watch.place == "conf" else "")
