"""The keeper's side of a start or a session: fork, prepare, and follow the child until its exec.

A Launch never blocks: the child is followed through its socket in the keeper's loop, and a child
that does not get to its exec in time is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from pyvz.container import protocol, session, stage
from pyvz.container.loop import READ, Loop
from pyvz.linux import namespace, overlay, process, syscall


class StepError(Exception):
    """A step failed: which, with what errno (0: none), in the kernel's or our words."""

    def __init__(self, step: str, code: int, text: str) -> None:
        super().__init__(f"{step}: {text}")
        self.step = step
        self.code = code
        self.text = text

    def to_json(self) -> dict[str, Any]:
        """As it travels to the client."""
        return {"step": self.step, "errno": self.code, "text": self.text}


@contextmanager
def step(name: str) -> Iterator[None]:
    """Give an OSError inside the block the name of the step."""
    try:
        yield
    except OSError as error:
        raise StepError(name, error.errno or 0, str(error)) from error


class Launch:
    """A child between its fork and its exec.

    done(launch, error) is called exactly once: with None when the exec has happened, else with
    what failed, and then after the child was reaped.  `pid` is the child that will be the program
    (for a session: known only once the child between has forked it).
    """

    def __init__(
        self, loop: Loop, sock: socket.socket, pid: int, pidfd: int, *, session: bool
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._child = pid
        self._session = session
        self.pid = 0 if session else pid
        self.pidfd = pidfd
        # Read now: an init that ends at once is reaped before we look again.  execve keeps it.
        self.started = process.start_time(pid)
        self.terminal = -1
        self._lent: list[int] = []
        self.ready = False
        self.ended = False
        self.error: StepError | None = None
        self.reply: Any = None  # the Reply that a prepared init's `proceed` waits for
        self.done: Callable[[Launch, StepError | None], None] = lambda _launch, _error: None
        sock.setblocking(False)  # noqa: FBT003  # the name of the function
        loop.add(sock.fileno(), READ, lambda _events: self.follow())
        self._timer = loop.after(protocol.SETUP_TIMEOUT, self._expire)

    def lend(self, trees: Sequence[int]) -> Launch:
        """Have a copy of these detached mounts ready for the stage, behind those of `go`."""
        self._lent = [os.dup(tree) for tree in trees]
        return self

    def go(self, trees: Sequence[int]) -> None:
        """Let a stage begin."""
        try:
            protocol.send(self._sock, {"go": True}, [*trees, *self._lent])
        finally:
            protocol.close_all(self._lent)
            self._lent = []

    def follow(self) -> None:
        """Take in what the child has said so far."""
        while not self.ended:
            try:
                got = protocol.receive(self._sock)
            except BlockingIOError:
                return
            except (protocol.ProtocolError, OSError) as error:
                self.fail(StepError("talking to the child", 0, str(error)))
                return
            if got is None:
                self._at_exec()
                return
            self._take(*got)

    def fail(self, error: StepError) -> None:
        """Give the child up; done() follows when it is reaped."""
        self.error = self.error or error
        self.kill()
        self._stop_following()

    def kill(self) -> None:
        """Kill the child (in a container's start that ends its pid namespace with it)."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)  # not reaped yet, so it is it
        with contextlib.suppress(OSError):
            syscall.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def owns(self, pid: int) -> bool:
        """Whether the process is of this launch."""
        return pid in {self._child, self.pid}

    def reaped(self, pid: int) -> None:
        """A child of this launch has ended: also the end of the launch, unless it went well."""
        self.follow()
        if self._session and pid == self._child and self.pid and not self.error:
            return  # the child between has done its part
        if self._session and pid == self.pid and self.ready and not self.error:
            return  # executed and ended before the child between could end: EOF will follow
        if not self.ended:
            self.error = self.error or StepError("starting", 0, "the child died")
            self._stop_following()
        if self.error:
            self.close()
            self.done(self, self.error)

    def close(self) -> None:
        """Close the descriptors that nobody took over."""
        protocol.close_all(fd for fd in (self.pidfd, self.terminal, *self._lent) if fd >= 0)
        self.pidfd = self.terminal = -1
        self._lent = []

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        if "error" in message:
            found = message["error"]
            error = StepError(str(found["step"]), int(found["errno"]), str(found["text"]))
            self.error = self.error or error
        elif "pid" in message and fds:
            os.close(self.pidfd)
            self.pid, self.pidfd = int(message["pid"]), fds.pop()
        elif ("console" in message or "terminal" in message) and fds:
            self.terminal = fds.pop()
        elif "ready" in message:
            self.ready = True
        protocol.close_all(fds)

    def _at_exec(self) -> None:
        """Every copy of the child's end is closed: by execve, or by its death."""
        if self.error is None and self.ready and self.pid:
            self._stop_following()
            self.done(self, None)
        else:
            self.fail(StepError("starting", 0, "the child died before it executed the program"))

    def _expire(self) -> None:
        waited = f"nothing happened for {protocol.SETUP_TIMEOUT:.0f} seconds"
        self.fail(StepError("starting", 110, waited))

    def _stop_following(self) -> None:
        if not self.ended:
            self.ended = True
            self._timer.cancel()
            self._loop.remove(self._sock.fileno())
            self._sock.close()


def start_init(loop: Loop, request: Mapping[str, Any], order: stage.Order) -> Launch:
    """Fork a container's init, which waits for `proceed`.  Raises StepError.

    request: see KeeperClient.start.
    """
    ids = request["ids"]
    with ExitStack() as stack:
        with step("opening the control groups"):
            order = order._replace(cgroups=_open_procs(stack, request["cgroup"]["procs"]))
            cgroup = _open_cgroup(stack, request["cgroup"]["v2_dir"])
        with step("forking"):
            launch = _fork(loop, order, cgroup)
        with _failing(launch), step("mapping the user and group ids"):
            if ids is not None:
                namespace.write_id_maps(launch.pid, ids[0], ids[1])
    return launch


def proceed(launch: Launch, request: Mapping[str, Any]) -> None:
    """Let a forked init go on to its exec; what fails is told by the launch."""
    with ExitStack() as stack, _failing(launch):
        launch.go(_trees(stack, launch.pid, request))


@contextmanager
def _failing(launch: Launch) -> Iterator[None]:
    """Give the launch up when the block fails; the answer is given when the child is reaped."""
    try:
        yield
    except (StepError, OSError) as error:
        launch.fail(error if isinstance(error, StepError) else StepError("starting", 0, str(error)))
    except BaseException as error:
        launch.fail(StepError("starting", 0, str(error)))
        raise


def _fork(loop: Loop, order: stage.Order, cgroup: int | None) -> Launch:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            pid, pidfd = syscall.clone3(order.plan.namespaces, cgroup)
        except BaseException:
            ours.close()
            raise
        if pid == 0:
            ours.close()
            stage.run(theirs, order)
    return Launch(loop, ours, pid, pidfd, session=False)


def _trees(stack: ExitStack, pid: int, request: Mapping[str, Any]) -> list[int]:
    """The root's tree and those of the binds, idmapped into the child's user namespace."""
    userns = None
    if request["ids"] is not None:
        userns = namespace.open_user(pid)
        stack.callback(os.close, userns)
    shifted = False
    if userns is not None:
        with step(f"preparing the mount of {request['root']}"):
            first = request["ids"][0]
            shifted = overlay.shift(request["root"], userns, (first, first))
    root = {"source": request["root"], "idmap": not shifted, "read_only": False, "attributes": ()}
    wanted = [root, *request["binds"]]
    trees = []
    for bind in wanted:
        with step(f"preparing the mount of {bind['source']}"):
            tree = namespace.detached_tree(
                bind["source"],
                userns=userns if bind["idmap"] else None,
                attributes=("ro",) * bool(bind["read_only"]) + tuple(bind["attributes"]),
            )
        stack.callback(os.close, tree)
        trees.append(tree)
    return trees


def start_session(loop: Loop, order: session.Order, v2_dir: str | None) -> Launch:
    """Fork a session's program.  Raises StepError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ExitStack() as stack:
        stack.enter_context(theirs)
        with step("joining the control groups"):
            cgroup = _open_cgroup(stack, v2_dir)
        with step("forking"):
            try:
                pid, pidfd = syscall.clone3(0, cgroup)
            except BaseException:
                ours.close()
                raise
        if pid == 0:
            ours.close()
            session.run(theirs, order)
    return Launch(loop, ours, pid, pidfd, session=True)


def _open_procs(stack: ExitStack, paths: Sequence[str]) -> list[int]:
    fds = []
    for path in paths:
        fds.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        stack.callback(os.close, fds[-1])
    return fds


def _open_cgroup(stack: ExitStack, directory: str | None) -> int | None:
    if directory is None:
        return None
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd
