"""The cgroup2 tree of the containers: what v1 (hybrid) and v2 nodes have in common.

<parent>/<name>/        one container: root of its cgroup namespace, delegated to its root user
<parent>/<name>/.exec/  sessions of exec and enter: once the container's init has enabled
                        controllers, no process may join <name> itself (the kernel's "no internal
                        process" rule), so sessions have a leaf.  It belongs to the node.
<parent>/.node/         processes of the node that were in <parent> (a delegated unit's own)

Freezing and killing use this tree also on v1: cgroup.freeze, unlike the v1 freezer, lets a frozen
process be killed, and cgroup.kill reaches every process at once.
Source: Documentation/admin-guide/cgroup-v2.rst
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable

from pyvz.errors import Timeout
from pyvz.linux import cgroupfs

SESSION_LEAF = ".exec"
# A container may make cgroups, and each costs the node memory: far more than systemd needs.
MAX_DEPTH = 64
MAX_DESCENDANTS = 8192
FREEZE_TIMEOUT = 30.0
ATTEMPTS = 20
DELEGATABLE = "/sys/kernel/cgroup/delegate"
_DELEGATED_FILES = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")


def despite_removals(make: Callable[[], None]) -> None:
    """Do MAKE, again when a directory vanished under it.

    Whoever removes the last container of a node takes the parent away as well, perhaps while
    somebody else is about to make the next one in it.
    """
    for _ in range(ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            make()
            return
    make()


def is_own(parent: str) -> bool:
    """Whether a parent directory is nobody's but this node's (machine.slice may be shared)."""
    return os.path.basename(parent).startswith("pyvz")


class Tree:
    """The part of a cgroup2 file system below one parent directory."""

    def __init__(self, parent: str) -> None:
        self.parent = parent

    def path(self, name: str) -> str:
        """Return the container's directory."""
        return f"{self.parent}/{cgroupfs.check_name(name)}"

    def create(self, name: str) -> str:
        """Make a container's directory anew (a dead one goes first) and return it.

        Raises Busy when processes are in it.
        """
        path = self.path(name)
        os.makedirs(self.parent, exist_ok=True)
        try:
            os.mkdir(path)
        except FileExistsError:
            # Asked first: removing would take empty cgroups away from under a living container.
            if self.populated(name):
                raise cgroupfs.busy(path) from None
            cgroupfs.remove([path], timeout=1.0)
            os.mkdir(path)
        cgroupfs.write_if_there(f"{path}/cgroup.max.depth", str(MAX_DEPTH))
        cgroupfs.write_if_there(f"{path}/cgroup.max.descendants", str(MAX_DESCENDANTS))
        return path

    def session_directory(self, name: str) -> str:
        """Return a directory that a new session may be cloned into, now."""
        path = self.path(name)
        leaf = f"{path}/{SESSION_LEAF}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(leaf)
        # The inside can make a sibling threaded, then our leaf is "domain invalid" and refuses
        # processes, while <name> becomes "domain threaded" and takes them.
        kind = cgroupfs.read(f"{leaf}/cgroup.type")
        return leaf if kind in (None, "domain") else path

    def delegate(self, name: str, uid: int, gid: int) -> None:
        """Let UID manage the inside: the directory and the files that the kernel lists as safe."""
        path = self.path(name)
        listed = (cgroupfs.read(DELEGATABLE) or "").split()
        os.chown(path, uid, gid)
        for file in dict.fromkeys((*_DELEGATED_FILES, *listed)):
            with contextlib.suppress(FileNotFoundError):
                os.chown(f"{path}/{file}", uid, gid)

    def freeze(self, name: str, timeout: float = FREEZE_TIMEOUT) -> None:
        """Stop every process; raise Timeout (and thaw again) when one does not stop."""
        self._write(name, "cgroup.freeze", "1")
        if not self._await(name, "frozen", 1, timeout):
            self.thaw(name)
            raise Timeout(f"the processes of {name} could not be frozen within {timeout:g} s")

    def thaw(self, name: str) -> None:
        """Let the processes go on."""
        self._write(name, "cgroup.freeze", "0")

    def frozen(self, name: str) -> bool:
        """Whether the container was frozen from outside (by `freeze`)."""
        return cgroupfs.read(f"{self.path(name)}/cgroup.freeze") == "1"

    def events_file(self, name: str) -> str:
        """Return the file that inotify(7) tells of when it freezes, thaws, or its last one ends."""
        return f"{self.path(name)}/cgroup.events"

    def populated(self, name: str) -> bool:
        """Whether a living process is in the container."""
        return bool(cgroupfs.read_keyed(f"{self.path(name)}/cgroup.events").get("populated"))

    def wait_empty(self, name: str, timeout: float) -> bool:
        """Wait until the last process has ended; return whether it has."""
        return self._await(name, "populated", 0, timeout)

    def kill(self, name: str) -> None:
        """Send SIGKILL to every process, frozen ones too.  Nothing there is fine."""
        try:
            self._write(name, "cgroup.kill", "1")
        except FileNotFoundError:  # Linux before 5.14, or no such cgroup
            self._kill_each(name)

    def _kill_each(self, name: str) -> None:
        if not os.path.isdir(self.path(name)):
            return
        self._write(name, "cgroup.freeze", "1")  # nobody forks while we go through the list
        for _ in range(3):
            for pid in self.pids(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.thaw(name)

    def pids(self, name: str) -> list[int]:
        """Return the processes of the container, as the node counts them."""
        return cgroupfs.pids_below(self.path(name))

    def names(self) -> set[str]:
        """Return the containers that have a directory here."""
        return {name for name in cgroupfs.children(self.parent) if not name.startswith(".")}

    def _write(self, name: str, file: str, text: str) -> None:
        cgroupfs.write(f"{self.path(name)}/{file}", text)

    def _await(self, name: str, key: str, value: int, timeout: float) -> bool:
        path = f"{self.path(name)}/cgroup.events"
        deadline = time.monotonic() + timeout
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return value == 0
        try:
            return _await_event(fd, f"{key} {value}", deadline)
        finally:
            os.close(fd)


def _await_event(fd: int, wanted: str, deadline: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLPRI)  # the kernel's "this file has changed"
    while True:
        try:
            lines = os.pread(fd, 4096, 0).decode().splitlines()
        except OSError:  # ENODEV: the cgroup was removed meanwhile
            return wanted.endswith(" 0")
        if wanted in lines:
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        poller.poll(min(left, 0.2) * 1000)
