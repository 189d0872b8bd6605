"""The container engine as the operations see it: the keeper and the cgroups put together.

Thread-safe.  No lease is taken here: the caller holds the environment's.
"""

from __future__ import annotations

import base64
import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from typing import Any, NamedTuple

from pyvz.container import devices, figures, seccomp
from pyvz.container.client import KeeperClient, KeeperFailure
from pyvz.container.devicefile import DeviceFiles
from pyvz.container.guestinit import InitKind
from pyvz.container.plan import plan
from pyvz.container.protocol import close_all
from pyvz.container.spec import ContainerSpec
from pyvz.errors import (
    AlreadyRunning,
    BadValue,
    ExecError,
    NotRunning,
    StartError,
    StopError,
    Timeout,
    VZError,
)
from pyvz.linux import process
from pyvz.linux.cgroup import Cgroups, Unapplied
from pyvz.linux.features import Features
from pyvz.linux.process import Pidfd
from pyvz.model.limits import Limits
from pyvz.model.usage import Usage
from pyvz.store.paths import Paths

logger = logging.getLogger(__name__)


class Init(NamedTuple):
    """A running container's init: pid on the node and start time in clock ticks since boot."""

    pid: int
    start_time: int


class ExitReason(StrEnum):
    """Why an init is no more.  unknown: nobody could learn it; count it as a halt."""

    HALT = "halt"
    REBOOT = "reboot"
    EXITED = "exited"
    KILLED = "killed"
    OOM = "oom"
    UNKNOWN = "unknown"


class Exit(NamedTuple):
    """The end of a container; status is init's wait status."""

    uuid: str
    pid: int
    reason: ExitReason
    status: int | None


class Terminal(NamedTuple):
    """A terminal's size in characters."""

    rows: int
    cols: int


class ExecRequest(NamedTuple):
    """A program to run inside.

    argv[0] is looked for in PATH inside.  env: added to the container's own environment.
    user: name or uid inside; root by default.  terminal: a terminal instead of three pipes.
    as_init: with init's environment only, not the user's HOME, USER, LOGNAME and SHELL.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    cwd: str = "/"
    user: str | None = None
    terminal: Terminal | None = None
    as_init: bool = False


class Session:
    """A running program.  fds: stdin, stdout, stderr, or one terminal; they are the caller's.

    exit: its exit status to come, as a shell shows it: 128+n for signal n, 127 when there is no
    such program, 126 when it cannot be executed.
    """

    def __init__(
        self, keeper: KeeperClient, name: str, fds: tuple[int, ...], exit_: Future[int]
    ) -> None:
        self._keeper = keeper
        self.id = name
        self.fds = fds
        self.exit = exit_

    def wait(self, timeout: float) -> int:
        """Wait for its end and return the exit status; raises Timeout."""
        try:
            return self.exit.result(timeout)
        except FutureTimeout:
            raise Timeout("The program inside the container has not ended in time") from None

    def signal(self, number: int) -> None:
        """Send a signal to its process group; nothing happens when it has ended."""
        try:
            self._keeper.call("signal_session", session=self.id, number=number)
        except KeeperFailure as failure:
            if failure.code != errno.ESRCH:
                raise


class NetworkAccess(NamedTuple):
    """A way into a container's network namespace; vzd itself never enters it.

    pid: its init on the node.  namespace: a descriptor of the namespace, to move links into.
    netlink: a route netlink socket that was made inside (container/netns.py).  Both descriptors
    are open only while the function that got this runs.
    """

    pid: int
    namespace: int
    netlink: int


class Runtime:
    """Starts, stops and looks at the containers of one node."""

    def __init__(
        self, keeper: KeeperClient, cgroups: Cgroups, features: Features, paths: Paths
    ) -> None:
        self._keeper = keeper
        self._cgroups = cgroups
        self._features = features
        self._paths = paths
        self._devices = DeviceFiles(paths)
        self.figures = figures.Files()  # who runs lxcfs (operations/figures.py) fills it
        self._killed: set[tuple[str, int]] = set()
        self._merging: dict[tuple[str, int], bool] = {}
        self._guard = threading.Lock()
        # Loading libseccomp takes 0.1 s, which the first start need not wait for.
        threading.Thread(target=_warm_up, name="seccomp", daemon=True).start()

    def start(
        self, spec: ContainerSpec, prepare: Callable[[NetworkAccess], None] | None = None
    ) -> Init:
        """Start a container's init; returns when it has been executed.

        prepare: is called when the container's namespaces exist and before anything of it runs.
        Raises AlreadyRunning, StartError (details name the step), and what prepare raises; then
        nothing is left behind, but of what prepare did outside.
        """
        if self.running(spec.uuid):
            raise AlreadyRunning(f"The container {spec.uuid} is running already")
        if spec.figures:
            self.figures.summon()
        trees = self.figures.trees() if spec.figures else []
        with ExitStack() as always, ExitStack() as undo:
            always.callback(figures.close, trees)
            undo.callback(self.undo_start, spec.uuid)
            request = self._request(self._devices.given(spec), [tree.target for tree in trees])
            self.make_cgroups(spec)
            request["cgroup"] = self._cgroups.entry(spec.uuid)
            try:
                fds = [tree.fd for tree in trees]
                pid, started = self._launch(spec, request, fds, prepare)
            except KeeperFailure as failure:
                raise _start_error(spec, failure) from failure
            undo.pop_all()
        return Init(pid, started)

    def stop(self, uuid: str, kind: InitKind, *, reboot: bool = False, timeout: float) -> bool:
        """Ask init to end; True when it has within timeout seconds (or does not run at all)."""
        init = self.running(uuid).get(uuid)
        if init is None:
            return True
        deadline = time.monotonic() + timeout
        try:
            with Pidfd(init.pid, init.start_time) as handle:
                if self._cgroups.frozen(uuid):
                    self._cgroups.thaw(uuid)
                number = kind.stop_signal(reboot=reboot)
                if number:
                    handle.signal(number)
                else:
                    self._run_stop_command(uuid, kind.stop_command(reboot=reboot))
                if not handle.wait(deadline - time.monotonic()):
                    return False
        except ProcessLookupError:
            pass
        self._await_end(uuid, init, max(1.0, deadline - time.monotonic()))
        return True

    def kill(self, uuid: str, *, timeout: float = 10.0) -> None:
        """End every process at once, init first; idempotent.  Raises StopError."""
        init = self.running(uuid).get(uuid)
        deadline = time.monotonic() + timeout
        if init is not None:
            with self._guard:
                self._killed.add((uuid, init.pid))
            with suppress(ProcessLookupError), Pidfd(init.pid, init.start_time) as handle:
                handle.signal(signal.SIGKILL)
        self._cgroups.kill(uuid)  # sessions, too; and it wakes what is frozen
        if init is not None:
            self._await_end(uuid, init, deadline - time.monotonic())
        if not self._cgroups.wait_empty(uuid, max(0.1, deadline - time.monotonic())):
            raise StopError(f"Processes of the container {uuid} do not end after SIGKILL")

    def clean(self, uuid: str) -> None:
        """Remove what a container that does not run has left; idempotent.  Raises Busy."""
        self._cgroups.remove(uuid)
        self._devices.remove(uuid)

    def pause(self, uuid: str) -> None:
        """Stop every process where it is; raises NotRunning, Timeout."""
        self._init(uuid)
        self._cgroups.freeze(uuid)

    def unpause(self, uuid: str) -> None:
        """Let a paused container go on."""
        self._init(uuid)
        self._cgroups.thaw(uuid)

    def exec(self, uuid: str, request: ExecRequest) -> Session:
        """Run a program inside.  Raises NotRunning, ExecError, BadValue."""
        if not request.argv or any("\0" in word for word in request.argv):
            raise BadValue("There is no program to run")
        if self._cgroups.frozen(uuid):
            raise NotRunning("The container is paused", hint="Let it go on first (prlctl resume).")
        message: dict[str, Any] = {
            "uuid": uuid,
            "argv": list(request.argv),
            "env": list(request.env),
            "cwd": request.cwd,
            "user": request.user,
            "window": list(request.terminal) if request.terminal else None,
            "as_init": request.as_init,
        }
        try:
            self._init(uuid)
            message["cgroup"] = self._cgroups.session_entry(uuid)
            name, fds, future = self._keeper.exec(message)
        except KeeperFailure as failure:
            raise _exec_error(request, failure) from failure
        return Session(self._keeper, name, tuple(fds), future)

    def console(self, uuid: str) -> int:
        """A stream socket: first the scroll-back, then live; what is written is typed."""
        try:
            return self._keeper.call("console", uuid=uuid).fds[0]
        except KeeperFailure as failure:
            raise _not_running(failure) from failure

    def resize_console(self, uuid: str, size: Terminal) -> None:
        """Set the size of the console's window."""
        try:
            self._keeper.call("resize", uuid=uuid, rows=size.rows, columns=size.cols)
        except KeeperFailure as failure:
            raise _not_running(failure) from failure

    def running(self, uuid: str | None = None) -> dict[str, Init]:
        """Every running container, or the one with that UUID, checked against the kernel."""
        rows = self._keeper.call("list", uuid=uuid).data["containers"]
        return {
            row["uuid"]: Init(row["pid"], row["started"])
            for row in rows
            if process.alive(row["pid"], row["started"])
        }

    def merges(self, uuid: str, init: Init) -> bool:
        """Whether the equal pages of a running container are merged, as it was started with."""
        key = (uuid, init.pid)
        if key not in self._merging:
            with suppress(KeeperFailure):
                record = self._keeper.call("record", uuid=uuid).data
                self._merging[key] = bool(record.get("merge"))
        return self._merging.get(key, False)

    def apply(
        self, uuid: str, limits: Limits, disks: tuple[tuple[int, int], ...] = ()
    ) -> tuple[Unapplied, ...]:
        """Change limits of a running container; returns what this kernel cannot keep."""
        return self._cgroups.apply(uuid, limits, disks)

    def usage(self, uuid: str) -> Usage:
        """What it uses now."""
        return self._cgroups.usage(uuid)

    def on_exit(self, callback: Callable[[Exit], Future[None] | None]) -> None:
        """Have every end of an init told, in a thread of its own; also those that nobody heard.

        To be called once.  The keeper forgets an end when the callback has returned None, or when
        the future that it returned is done; so what vzd did not finish is told to the next one.
        """

        def tell(event: Any) -> None:  # noqa: ANN401  # JSON
            if event["event"] != "exit":
                return
            handled = callback(self._exit(event["uuid"], event["pid"], event["status"]))
            if handled is None:
                self._acknowledge(event)
            else:
                handled.add_done_callback(
                    lambda future: None if future.cancelled() else self._acknowledge(event)
                )

        self._keeper.listen(tell)

    def _acknowledge(self, event: dict[str, Any]) -> None:
        """Let the keeper forget an end; one that cannot be reached tells it again later."""
        key = {name: event[name] for name in ("uuid", "pid", "started")}
        with suppress(VZError):
            self._keeper.call("ack", **key)

    @contextmanager
    def network(self, uuid: str) -> Iterator[NetworkAccess]:
        """Give a way into a running container's network; raises NotRunning."""
        init = self._init(uuid)
        try:
            fds = self._keeper.call("network", uuid=uuid).fds
        except KeeperFailure as failure:
            raise _not_running(failure) from failure
        try:
            yield NetworkAccess(init.pid, *fds)
        finally:
            close_all(fds)

    # -- what dump and restore need (checkpoint.py) ------------------------------------------------

    @property
    def keeper(self) -> KeeperClient:
        """The connection to the keeper."""
        return self._keeper

    def make_cgroups(self, spec: ContainerSpec) -> None:
        """Make a container's cgroups anew, with its limits."""
        self._cgroups.create(spec.uuid)
        self._apply_all(spec)
        if spec.ids is not None:
            self._cgroups.delegate(spec.uuid, spec.ids.first, spec.ids.first)

    def cgroup_directory(self, uuid: str) -> str:
        """Return its directory in the cgroup2 tree, the root of what it sees."""
        return str(self._cgroups.entry(uuid)["v2_dir"])

    def cgroup_path(self, uuid: str) -> str:
        """Return that directory below the hierarchy's mount; it is the same in those of v1."""
        return f"/{self._cgroups.parent_path}/{uuid}"

    def with_node_binds(self, spec: ContainerSpec) -> ContainerSpec:
        """Return the specification with lxcfs' files as binds, and its devices: for checkpoints."""
        if spec.figures:
            self.figures.summon()
        return self._devices.given(spec)._replace(binds=(*spec.binds, *self.figures.binds()))

    def undo_start(self, uuid: str) -> None:
        """Take away what a start or restore that failed has left of a container."""
        with suppress(VZError, OSError):
            self.kill(uuid)
        with suppress(VZError, OSError):
            self.clean(uuid)

    # -- parts ----------------------------------------------------------------------------------

    def _launch(
        self,
        spec: ContainerSpec,
        request: dict[str, Any],
        trees: Sequence[int],
        prepare: Callable[[NetworkAccess], None] | None,
    ) -> tuple[int, int]:
        if prepare is None:
            return self._keeper.start(request, trees)
        pid, fds = self._keeper.prepare(request, trees)
        try:
            prepare(NetworkAccess(pid, *fds))
        except BaseException:
            with suppress(VZError):
                self._keeper.abandon(spec.uuid)
            raise
        finally:
            close_all(fds)
        return self._keeper.proceed(spec.uuid)

    def _request(self, spec: ContainerSpec, shown: Sequence[str]) -> dict[str, Any]:
        program = seccomp.program(nesting=spec.nesting, netfilter=spec.netfilter)
        return {
            "uuid": spec.uuid,
            "plan": plan(spec, shown).to_json(),
            "seccomp": base64.b64encode(program).decode(),
            "ids": None if spec.ids is None else [spec.ids.first, spec.ids.count],
            "root": os.fspath(spec.root),
            "binds": [{**bind._asdict(), "source": os.fspath(bind.source)} for bind in spec.binds],
            "log": None if spec.log is None else os.fspath(spec.log),
        }

    def _apply_all(self, spec: ContainerSpec) -> None:
        limits = spec.limits
        if limits.devices is None:
            limits = limits._replace(devices=devices.rules(spec.device_nodes, spec.device_rules))
        for missing in self._cgroups.apply(spec.uuid, limits, spec.disks):
            logger.warning("%s: %s", spec.uuid, missing)

    def _run_stop_command(self, uuid: str, command: tuple[str, ...]) -> None:
        try:
            session = self.exec(uuid, ExecRequest(command))
        except VZError as error:
            logger.warning("%s: init could not be asked to stop: %s", uuid, error)
            return
        for fd in session.fds:
            os.close(fd)

    def _await_end(self, uuid: str, init: Init, timeout: float) -> None:
        """Wait until the keeper, too, knows that this init is gone."""
        deadline = time.monotonic() + timeout
        pause = 0.001
        while self._keeper_knows(uuid, init):
            if time.monotonic() > deadline:
                raise StopError(f"The init of the container {uuid} does not end")
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def _keeper_knows(self, uuid: str, init: Init) -> bool:
        rows = self._keeper.call("list", uuid=uuid).data["containers"]
        return any(row["uuid"] == uuid and row["pid"] == init.pid for row in rows)

    def _init(self, uuid: str) -> Init:
        found = self.running(uuid).get(uuid)
        if found is None:
            raise NotRunning("The container is not running")
        return found

    def _exit(self, uuid: str, pid: int, status: int | None) -> Exit:
        with self._guard:
            ours = (uuid, pid) in self._killed
            self._killed.discard((uuid, pid))
        reason = exit_reason(status)
        if reason is ExitReason.KILLED and not ours:
            with suppress(OSError, VZError):
                if self._cgroups.usage(uuid).oom_kills:
                    reason = ExitReason.OOM
        return Exit(uuid, pid, reason, status)


def _warm_up() -> None:
    with suppress(VZError):  # who starts a container is told
        seccomp.program(nesting=False)


def exit_reason(status: int | None) -> ExitReason:
    """What an init's wait status means (kernel/pid_namespace.c, reboot_pid_ns)."""
    if status is None:
        return ExitReason.UNKNOWN
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return ExitReason.EXITED
    if -code == signal.SIGHUP:
        return ExitReason.REBOOT
    return ExitReason.HALT if -code == signal.SIGINT else ExitReason.KILLED


def _start_error(spec: ContainerSpec, failure: KeeperFailure) -> StartError:
    hint = ""
    if failure.step == f"preparing the mount of {spec.root}" and failure.code == errno.EINVAL:
        hint = "Its file system does not support idmapped mounts (ext4, xfs, btrfs, tmpfs do)."
    return StartError(
        f"The container could not be started: {failure.step}: {failure.text}", hint=hint
    )


def _exec_error(request: ExecRequest, failure: KeeperFailure) -> VZError:
    if failure.step == "looking for the container":
        return NotRunning("The container is not running")
    return ExecError(f"'{request.argv[0]}' could not be started inside the container: {failure}")


def _not_running(failure: KeeperFailure) -> VZError:
    if failure.step == "looking for the container":
        return NotRunning("The container is not running")
    return failure
