"""The virtual machines of a node as the operations see them: QEMU processes, their control groups
and monitors.

    <run>/vm/<uuid>/process.json   boot id, pid and start time: who it is
    <run>/vm/<uuid>/*.sock         monitor, agent, console: made by us, listened on by QEMU

QEMU is vzd's child only until vzd ends: it has a session and control groups of its own, so it lives
on, and the next vzd finds it by process.json and talks to it by its monitor.  Nothing needs to be
its parent: what a wait status would tell, QEMU has said on its monitor (SHUTDOWN and its reason).

Thread-safe.  No lease is taken here: the caller holds the environment's.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pyvz.errors import (
    AlreadyRunning,
    NotRunning,
    StopError,
    Timeout,
    Unsupported,
    VZError,
)
from pyvz.linux import cgroupfs
from pyvz.linux import run as programs
from pyvz.linux.cgroup import Cgroups
from pyvz.linux.cgroup_entry import CgroupEntry
from pyvz.linux.file import write_atomic
from pyvz.linux.process import Pidfd, alive, boot_id, start_time
from pyvz.model.limits import DeviceRule, Limits
from pyvz.model.usage import Usage
from pyvz.store.paths import Paths
from pyvz.units import MIB
from pyvz.vm import commandline, machinelog, memorylock
from pyvz.vm.launcher import Launcher, Launchers
from pyvz.vm.monitor import Event, Loop, Monitor
from pyvz.vm.spec import MachineSpec, Sockets
from pyvz.vm.tpm import Companion

START = 60.0  # seconds for QEMU to answer on its monitor; a loaded node may take some
LATER = 0.3  # seconds after a start that what may wait for its end does
COMPANIONS = 2.0  # seconds for what runs beside QEMU to end with it
ENDING = 1.0  # seconds for a QEMU that hung up before it began to end
REACH = 30.0  # seconds to reach the monitor of a machine that runs
LOOK = 10.0  # the same for who looks at many: one that hangs must not hold up the others
SOCKETS = ("monitor", "agent", "console")
_NODES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9))  # null zero full random urandom
_KVM = Path("/dev/kvm")
PINNED = 1 << 30  # bytes of a machine with PCI devices of the node that the kernel may lock for it

logger = logging.getLogger(__name__)


class Process(NamedTuple):
    """A QEMU on the node."""

    pid: int
    start_time: int


class End(NamedTuple):
    """The end of a machine.  reason: QEMU's word (guest-shutdown, ...), "" when it said none."""

    uuid: str
    pid: int
    reason: str


class Launch(NamedTuple):
    """How QEMU is started.  descriptors: that it keeps.  uid: its user and group.

    companions: programs that run beside it, started first.
    """

    spec: MachineSpec
    descriptors: tuple[int, ...]
    uid: int
    limits: Limits
    disks: tuple[tuple[int, int], ...]
    log: Path
    companions: tuple[Companion, ...] = ()


class Machines:
    """Starts, finds and ends the virtual machines of one node."""

    def __init__(self, cgroups: Cgroups, paths: Paths) -> None:
        self._cgroups = cgroups
        self._directory = paths.run / "vm"
        self._loop = Loop()
        self._guard = threading.RLock()
        self._monitors: dict[str, Monitor] = {}
        self._connecting: dict[str, Future[Monitor]] = {}
        self._children: dict[str, list[programs.Process]] = {}
        self._outside: dict[str, list[Launcher]] = {}  # of the tree: those of a start just now
        self._on_end: Callable[[End], None] | None = None
        self._on_event: Callable[[str, Event], None] | None = None
        self._pool = ThreadPoolExecutor(4, "machine")
        self._launchers = Launchers(commandline.PROGRAM)

    # -- life

    def prepare(self) -> None:
        """Make ready what every start needs; soon a machine may be started."""
        self._launchers.prepare()

    def start(self, launch: Launch, meanwhile: Callable[[], None] = lambda: None) -> Process:
        """Start QEMU; returns when it waits for `cont`.  A failure leaves nothing behind.

        meanwhile: done while QEMU gets ready; it has its descriptors and control groups then.
        Raises AlreadyRunning, StartError (details: QEMU's words), Unsupported (no QEMU),
        NotEnoughResources (memory that cannot be locked).
        """
        uuid = launch.spec.uuid
        if uuid in self.running():
            raise AlreadyRunning(f"The virtual machine {uuid} is running already")
        with ExitStack() as undo:
            undo.callback(self.clean, uuid)
            self._cgroups.create(uuid)
            rules = tuple(DeviceRule("c", *node, "rw") for node in _nodes(launch.spec))
            limits = launch.limits._replace(devices=rules)
            for missing in self._cgroups.apply(uuid, limits, launch.disks):
                logger.warning("%s: %s", uuid, missing)
            process = self._spawn(launch)
            undo.callback(self.kill, uuid)
            meanwhile()
            self._await_monitor(launch, process)
            undo.pop_all()
        self._loop.later(LATER, lambda: self._submit(self._afterwards, uuid))
        return process

    def _afterwards(self, uuid: str) -> None:
        """Do what would have been in the way of a start."""
        self._enter_tree(uuid)
        self._launchers.prepare()

    def _spawn(self, launch: Launch) -> Process:
        uuid = launch.spec.uuid
        directory = self.directory(uuid)
        with ExitStack() as opened:
            sockets = _listening(directory, launch.spec, opened)
            words = commandline.argv(launch.spec, sockets)
            request = _request(self._cgroups.entry(uuid), words, launch)
            log = opened.enter_context(machinelog.appended(launch.log))
            launchers = [self._taken(uuid, self._launchers.take())]
            for each in launch.companions:
                beside = request | {"argv": list(each.argv), "groups": []}
                launchers.append(self._taken(uuid, Launcher()))
                launchers[-1].execute(beside, each.descriptors, log)
            launchers[0].settle(words)
            pid = launchers[0].pid
            process = Process(pid, start_time(pid))
            state = "inmigrate" if launch.spec.incoming else "prelaunch"
            with self._guard:  # so that nobody connects before us: QEMU takes one client only
                # Before it becomes QEMU, so that no death of ours leaves one that nobody knows.
                data = {"boot": boot_id(), "pid": process.pid, "start": process.start_time}
                text = json.dumps(data)
                write_atomic(directory / "process.json", text, 0o600, durable=False)
                launchers[0].execute(request, (*sockets.every, *launch.descriptors), log)
                self._connect(uuid, START, state)
                self._outside[uuid] = launchers
        return process

    def _enter_tree(self, uuid: str) -> None:
        """Let its processes into the cgroup2 tree where that limits nothing (cgroup v1).

        They do not enter it themselves, for it takes the lock of cgroup_entry.py, and holds up all
        processes of the node that make threads, as a QEMU that starts does.
        """
        with self._guard:
            launchers = self._outside.pop(uuid, [])
        for launcher in launchers:
            launcher.await_exec()
            self._join_tree(uuid, launcher.pid)

    def _join_tree(self, uuid: str, pid: int) -> None:
        entry = self._cgroups.entry(uuid)
        if entry["procs"]:
            with suppress(OSError):  # it has ended
                cgroupfs.write(f"{entry['v2_dir']}/cgroup.procs", str(pid))

    def _taken(self, uuid: str, launcher: Launcher) -> Launcher:
        """Return a launcher, whose process is the machine's from now on."""
        with self._guard:
            self._children.setdefault(uuid, []).append(launcher.process)
        return launcher

    def _await_monitor(self, launch: Launch, process: Process) -> None:
        """Wait for QEMU's greeting.

        Its sockets listened already before it was started, and it alone has them: when it ends
        before it answers, the connection does, too.
        """
        try:
            self.monitor(launch.spec.uuid, timeout=START)
        except VZError as error:
            with suppress(ProcessLookupError), Pidfd(*process) as handle:
                handle.wait(ENDING)  # so that it has said all that it has to say
            raise machinelog.start_error(launch.log, launch.spec.memory) from error

    def kill(self, uuid: str, *, timeout: float = 20.0) -> None:
        """End QEMU at once; idempotent.  Raises StopError."""
        process = self.running().get(uuid)
        deadline = time.monotonic() + timeout
        if process is not None:
            with suppress(ProcessLookupError), Pidfd(*process) as handle:
                handle.signal(signal.SIGKILL)
                if not handle.wait(timeout):
                    raise StopError(f"QEMU of the virtual machine {uuid} does not end")
        self._enter_tree(uuid)
        self._cgroups.kill(uuid)
        if not self._cgroups.wait_empty(uuid, max(0.1, deadline - time.monotonic())):
            raise StopError(f"Processes of the virtual machine {uuid} do not end after SIGKILL")
        self._reap(uuid)

    def clean(self, uuid: str) -> None:
        """Remove what a machine that does not run has left; idempotent.  Raises Busy."""
        with self._guard:
            self._connecting.pop(uuid, None)
            monitor = self._monitors.pop(uuid, None)
        if monitor is not None:
            monitor.close()
        self._enter_tree(uuid)
        if uuid not in self.running() and not self._cgroups.wait_empty(uuid, COMPANIONS):
            self._cgroups.kill(uuid)  # what ran beside it and should have ended with it
            self._cgroups.wait_empty(uuid, COMPANIONS)
        self._reap(uuid)
        self._cgroups.remove(uuid)
        shutil.rmtree(self.directory(uuid), ignore_errors=True)

    def _reap(self, uuid: str) -> None:
        with self._guard:
            living = []
            for child in self._children.pop(uuid, []):
                if child.poll() is None:
                    living.append(child)
                else:
                    child.close()
            if living:
                self._children[uuid] = living

    def wait_end(self, uuid: str, timeout: float) -> bool:
        """Wait until QEMU has ended; True when it has in time (or did not run)."""
        process = self.running().get(uuid)
        if process is None:
            return True
        try:
            with Pidfd(*process) as handle:
                return handle.wait(timeout)
        except ProcessLookupError:
            return True

    # -- looking

    def directory(self, uuid: str) -> Path:
        """Return where sockets and process.json of a machine are."""
        return self._directory / uuid

    def running(self) -> dict[str, Process]:
        """Return every running machine, checked against the kernel."""
        found: dict[str, Process] = {}
        try:
            names = [entry.name for entry in self._directory.iterdir()]
        except FileNotFoundError:
            return found
        for name in names:
            process = self._process(name)
            if process is not None and alive(*process):
                found[name] = process
        return found

    def left(self) -> set[str]:
        """Return the uuids of which something is left, running or not."""
        try:
            return {entry.name for entry in self._directory.iterdir()}
        except FileNotFoundError:
            return set()

    def _process(self, uuid: str) -> Process | None:
        try:
            with open(self._directory / uuid / "process.json", encoding="ascii") as file:
                data = json.load(file)
            if data["boot"] != boot_id():
                return None
            return Process(int(data["pid"]), int(data["start"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def monitor(self, uuid: str, *, timeout: float = REACH) -> Monitor:
        """Return the monitor of a machine, connected; raises NotRunning, Timeout."""
        with self._guard:
            known = self.connected(uuid)
            if known is not None:
                return known
            path = self.directory(uuid) / "monitor.sock"
            if not path.exists():
                raise NotRunning("The virtual machine is not running")
            # QEMU talks to one client at a time: a second one would wait in vain.
            connecting = self._connecting.get(uuid) or self._connect(uuid, timeout)
        return _awaited(connecting, timeout)

    def _connect(self, uuid: str, timeout: float, state: str = "") -> Future[Monitor]:
        """Begin to connect to a monitor; the guard is held."""
        path = self.directory(uuid) / "monitor.sock"
        begun = Monitor.begin(
            self._loop,
            path,
            lambda event: self._heard(uuid, event),
            timeout=timeout,
            state=state,
        )
        self._connecting[uuid] = begun
        begun.add_done_callback(lambda done: self._connected(uuid, done))
        return begun

    def _connected(self, uuid: str, done: Future[Monitor]) -> None:
        with self._guard:
            if self._connecting.get(uuid) is done:
                del self._connecting[uuid]
                if not done.cancelled() and done.exception() is None:
                    self._monitors[uuid] = done.result()

    def connected(self, uuid: str) -> Monitor | None:
        """Return the monitor of a machine that we talk to already; waits for nothing."""
        known = self._monitors.get(uuid)
        return known if known is not None and not known.ended.is_set() else None

    def state(self, uuid: str) -> str:
        """Return QEMU's word for what the machine does, "" when it does not answer."""
        try:
            return self.monitor(uuid, timeout=LOOK).state
        except VZError:
            return ""

    def connect(self, uuid: str, name: str, timeout: float = REACH) -> socket.socket:
        """Connect to one of its sockets (agent, console); raises NotRunning."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        try:
            sock.connect(os.fspath(self.directory(uuid) / f"{name}.sock"))
        except OSError as error:
            sock.close()
            raise NotRunning(f"The {name} of the virtual machine does not answer") from error
        return sock

    def usage(self, uuid: str) -> Usage:
        """Return what it uses of the node."""
        return self._cgroups.usage(uuid)

    # -- telling

    def on_end(self, callback: Callable[[End], None]) -> None:
        """Have every end told, in a thread; to be called once."""
        self._on_end = callback

    def on_event(self, callback: Callable[[str, Event], None]) -> None:
        """Have QEMU's events told, in a thread; to be called once."""
        self._on_event = callback

    def adopt(self) -> None:
        """Connect to every machine that runs (a fresh vzd), to hear of its end."""
        for uuid, process in self.running().items():
            self._join_tree(uuid, process.pid)
            with suppress(VZError):
                self.monitor(uuid, timeout=LOOK)

    def _heard(self, uuid: str, event: Event) -> None:
        """Called in the monitors' thread: nothing here may wait."""
        if event["event"] == "PYVZ_END":
            self._submit(self._ended, uuid)
        elif self._on_event is not None:
            self._submit(self._on_event, uuid, event)

    def _submit(self, function: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # shut down: the next vzd finds out
            self._pool.submit(function, *arguments)

    def _ended(self, uuid: str) -> None:
        with self._guard:
            monitor = self._monitors.get(uuid)
        process = self._process(uuid)
        if process is None or self._on_end is None:
            return
        self.wait_end(uuid, REACH)
        self._reap(uuid)
        reason = str((monitor.shutdown if monitor else {}).get("data", {}).get("reason", ""))
        try:
            self._on_end(End(uuid, process.pid, reason))
        except Exception:
            logger.exception("%s: after its end", uuid)

    def close(self) -> None:
        """Hang up everywhere; the machines go on."""
        self._launchers.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._guard:
            monitors, self._monitors = list(self._monitors.values()), {}
        for monitor in monitors:
            monitor.close()
        self._loop.close()


def _awaited(connecting: Future[Monitor], timeout: float) -> Monitor:
    """Wait for the monitor to which somebody else is connecting."""
    try:
        return connecting.result(timeout)
    except FutureTimeout:
        raise Timeout(f"QEMU did not answer within {timeout:g} s") from None


def _nodes(spec: MachineSpec) -> Sequence[tuple[int, int]]:
    opened = [Path(name) for device in spec.pci_devices for name in device.nodes]
    opened += [_KVM] if spec.accelerator == "kvm" else []
    return (*_NODES, *dict.fromkeys(_device_numbers(path) for path in opened))


def _looked(path: Path) -> os.stat_result:
    """Return what the node of a device is; raises Unsupported when it is not there."""
    try:
        return path.stat()
    except OSError as error:
        raise Unsupported(f"{path}: {error.strerror}") from error


def _device_numbers(path: Path) -> tuple[int, int]:
    found = _looked(path)
    if not stat.S_ISCHR(found.st_mode):
        raise Unsupported(f"{path} is not a device")
    return os.major(found.st_rdev), os.minor(found.st_rdev)


def _listening(directory: Path, spec: MachineSpec, opened: ExitStack) -> Sockets:
    """Make the sockets in a fresh directory; QEMU gets them listening already."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True)
    found = []
    for name in (*SOCKETS, *(channel_name(number) for number in range(len(spec.channels)))):
        sock = opened.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(os.fspath(directory / f"{name}.sock"))
        sock.listen(1)
        found.append(sock.fileno())
    monitor, agent, console, *channels = found
    return Sockets(monitor, agent, console, tuple(channels))


def channel_name(number: int) -> str:
    """Return what the socket of a channel is called, by its place among those of the machine."""
    return f"channel-{number}"


def _request(entry: CgroupEntry, words: list[str], launch: Launch) -> dict[str, Any]:
    """Return what launch.py is to do; raises NotEnoughResources (memory to be locked)."""
    return {
        "argv": words,
        "procs": entry["procs"] or [f"{entry['v2_dir']}/cgroup.procs"],
        "uid": launch.uid,
        "groups": _groups(_KVM) if launch.spec.accelerator == "kvm" else [],
        "memlock": _memlock(launch.spec),
    }


def _memlock(spec: MachineSpec) -> int:
    """Return how many bytes may be locked: devices of the node reach all of the guest's memory.

    PINNED is for what else of the machine they reach, as libvirt has it.  0: no more than others;
    -1: no limit.  Raises NotEnoughResources.
    """
    most = spec.max_memory * MIB + (PINNED if spec.pci_devices else 0)
    if spec.memory_lock:
        return memorylock.limit(most)
    return most if spec.pci_devices else 0


def _groups(kvm: Path) -> list[int]:
    """Return the groups that QEMU needs to open /dev/kvm; raises Unsupported for that of root."""
    found = _looked(kvm)
    if found.st_mode & 0o006 == 0o006:
        return []
    if found.st_gid == 0:
        raise Unsupported(
            f"{kvm} can be opened by root only, and virtual machines run as users of their own",
            hint=f"chgrp kvm {kvm}; chmod 660 {kvm}",
        )
    return [found.st_gid]
