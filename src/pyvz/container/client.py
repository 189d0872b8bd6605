"""vzd's side of the keeper's socket: thread-safe, with a deadline on every answer.

One thread reads; events go to a second one, so that a slow listener never delays an answer.
A lost connection fails what was waiting; the next call connects again, starts a new keeper when
there is none, and gives it back the console masters that we hold copies of.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pyvz.container import program, protocol
from pyvz.errors import DaemonUnreachable, Timeout, VZError
from pyvz.store.paths import Paths

ANSWER_TIMEOUT = 60.0  # seconds; a start or exec gets protocol.SETUP_TIMEOUT more
LAUNCH_TIMEOUT = 60.0  # a tenth of a second as a rule; a busy node has no time for Python

logger = logging.getLogger(__name__)

Event = Mapping[str, Any]


class Answer(NamedTuple):
    """What the keeper answered; the descriptors are the caller's."""

    data: dict[str, Any]
    fds: list[int]


class KeeperFailure(VZError):
    """The keeper could not do a step: `step` names it, `code` is the errno or 0."""

    def __init__(self, step: str, code: int, text: str) -> None:
        super().__init__(f"{step}: {text}" if step else text)
        self.step = step
        self.code = code
        self.text = text


class KeeperClient:
    """A connection to the keeper of one node.  Use start_if_absent(paths) or the constructor."""

    def __init__(self, path: Path, *, spawn: Callable[[], None] | None = None) -> None:
        self._path = path
        self._spawn = spawn
        self._lock = threading.RLock()  # protects the following four
        self._sock: socket.socket | None = None
        self._waiting: dict[int, Future[Answer]] = {}
        self._counter = 0
        self._masters: dict[str, int] = {}
        self._sessions: dict[str, Future[int]] = {}
        self._ended: dict[str, int] = {}  # ends of sessions that are not registered yet
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._listener: Callable[[Event], None] | None = None

    @classmethod
    def start_if_absent(cls, paths: Paths) -> KeeperClient:
        """Connect to the node's keeper, starting it when there is none; DaemonUnreachable."""
        log = paths.log / "keeper.log"
        client = cls(paths.keeper_socket, spawn=lambda: spawn(paths.keeper_socket, log))
        client.call("ping")
        client._bring_up_to_date(f"{paths.keeper_socket}.d")
        return client

    def _bring_up_to_date(self, state: str) -> None:
        """Have a keeper from before an upgrade execute the program that is installed now."""
        wanted = program.identity()
        if program.noted(state) == wanted:
            return
        try:
            self.upgrade()
        except KeeperFailure as failure:  # a start is under way: the next vzd tries again
            logger.warning("the keeper runs an older program: %s", failure)
            return
        if program.noted(state) != wanted:
            logger.warning(
                "the keeper runs another program than this vzd, from another place: "
                "containers may not start until it is ended (no container may run then)"
            )

    def call(
        self,
        op: str,
        *,
        timeout: float = ANSWER_TIMEOUT,
        fds: Sequence[int] = (),
        **data: Any,  # noqa: ANN401  # JSON
    ) -> Answer:
        """Ask, and wait for the answer.  Raises KeeperFailure, Timeout, DaemonUnreachable."""
        future: Future[Answer] = Future()
        with self._lock:
            self._counter += 1
            identity = self._counter
            try:
                self._ask(future, {"id": identity, "op": op, **data}, fds)
            except (OSError, protocol.ProtocolError) as error:
                self._waiting.pop(identity, None)
                raise DaemonUnreachable(f"The keeper could not be asked: {error}") from error
        try:
            return future.result(timeout)
        except FutureTimeout:
            with self._lock:
                self._waiting.pop(identity, None)
            raise Timeout(
                f"The keeper did not answer '{op}' within {timeout:.0f} seconds"
            ) from None

    def _ask(self, future: Future[Answer], message: dict[str, Any], fds: Sequence[int]) -> None:
        sock = self._connected()
        self._waiting[message["id"]] = future
        try:
            protocol.send(sock, message, fds)
        except (BrokenPipeError, ConnectionResetError):
            # The keeper was killed and our reader has not noticed yet: it got nothing of this.
            del self._waiting[message["id"]]
            self._drop(sock)
            sock = self._connected()
            self._waiting[message["id"]] = future
            protocol.send(sock, message, fds)

    def start(self, request: Mapping[str, Any], fds: Sequence[int] = ()) -> tuple[int, int]:
        """Start an init; returns (pid, start time).  Raises KeeperFailure, ...

        request: uuid, plan (StartPlan.to_json), seccomp (base64), cgroup (CgroupEntry), ids
        ([first, count] or None), root (path), binds ([{source, idmap, read_only}]), log (path).
        fds: detached mounts for the plan's Figure operations.
        """
        return self._executed("start", request, fds)

    def prepare(self, request: Mapping[str, Any], fds: Sequence[int] = ()) -> tuple[int, list[int]]:
        """Fork an init that waits for `proceed`; returns pid and [namespace, socket].

        The descriptors, of its network, are the caller's (netns.py).  It is ended by `abandon`,
        when we are gone, or when it has waited protocol.SETUP_TIMEOUT.
        """
        answer = self.call("prepare", fds=fds, **request)
        return int(answer.data["pid"]), answer.fds

    def proceed(self, uuid: str) -> tuple[int, int]:
        """Have a prepared init executed; returns as `start`."""
        return self._executed("proceed", {"uuid": uuid})

    def abandon(self, uuid: str) -> None:
        """End a prepared init."""
        self.call("abandon", uuid=uuid)

    def _executed(
        self, op: str, request: Mapping[str, Any], fds: Sequence[int] = ()
    ) -> tuple[int, int]:
        patience = ANSWER_TIMEOUT + protocol.SETUP_TIMEOUT
        answer = self.call(op, timeout=patience, fds=fds, **request)
        with self._lock:
            for fd in answer.fds:
                self._keep_master(str(request["uuid"]), fd)
        return int(answer.data["pid"]), int(answer.data["started"])

    def adopt(self, uuid: str, pid: int, record: Mapping[str, Any], fds: Sequence[int]) -> int:
        """Have a restored init taken over; returns its start time.  fds: its console's master."""
        answer = self.call("adopt", uuid=uuid, pid=pid, record=record, fds=fds)
        with self._lock:
            for fd in fds:
                self._keep_master(uuid, os.dup(fd))
        return int(answer.data["started"])

    def exec(self, request: Mapping[str, Any]) -> tuple[str, list[int], Future[int]]:
        """Start a program inside; returns its session's id, its streams, its exit to come."""
        answer = self.call("exec", timeout=ANSWER_TIMEOUT + protocol.SETUP_TIMEOUT, **request)
        name = str(answer.data["session"])
        future: Future[int] = Future()
        with self._lock:
            if name in self._ended:
                future.set_result(self._ended.pop(name))
            else:
                self._sessions[name] = future
        return name, answer.fds, future

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Have every event told to `listener`, in a thread of its own, from now on for good."""
        self._listener = listener
        threading.Thread(target=self._tell, name="keeper-events", daemon=True).start()
        self.call("subscribe")

    def quit(self, *, force: bool = False) -> None:
        """End the keeper; with containers only by force (they live on, for another to adopt).

        Raises KeeperFailure when containers run.
        """
        spawn_again, self._spawn = self._spawn, None  # nobody is to start it anew
        try:
            self.call("quit", force=force)
        except KeeperFailure:
            self._spawn = spawn_again
            raise

    def upgrade(self) -> None:
        """Have the keeper execute its program anew; raises KeeperFailure while a start runs."""
        self.call("upgrade")

    def close(self) -> None:
        """Hang up; what waits fails."""
        with self._lock:
            sock, self._sock = self._sock, None
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            protocol.close_all(self._masters.values())
            self._masters.clear()
        self._events.put(None)

    # -- connection -----------------------------------------------------------------------------

    def _connected(self) -> socket.socket:
        if self._sock is not None:
            return self._sock
        try:
            sock = _connect(self._path)
        except OSError as error:
            if self._spawn is None:
                raise DaemonUnreachable(f"The keeper at {self._path} does not answer") from error
            self._spawn()
            sock = _connect(self._path)
        self._sock = sock
        reader = threading.Thread(target=self._read, args=(sock,), name="keeper", daemon=True)
        reader.start()
        self._greet(sock)
        return sock

    def _greet(self, sock: socket.socket) -> None:
        """Subscribe again and give consoles back; answers to id 0 are of no interest."""
        with suppress(OSError):
            if self._listener is not None:
                protocol.send(sock, {"id": 0, "op": "subscribe"})
            for uuid, fd in self._masters.items():
                protocol.send(sock, {"id": 0, "op": "return_master", "uuid": uuid}, [fd])
            for name in self._sessions:
                protocol.send(sock, {"id": f"s{name}", "op": "session_status", "session": name})

    def _read(self, sock: socket.socket) -> None:
        while True:
            try:
                got = protocol.receive(sock)
            except (OSError, protocol.ProtocolError) as error:
                logger.warning("the keeper's connection broke: %s", error)
                got = None
            if got is None:
                self._lost(sock)
                return
            self._take(*got)

    def _lost(self, sock: socket.socket) -> None:
        with self._lock:
            self._drop(sock)
            sock.close()
        if self._listener is not None and self._spawn is not None:
            threading.Thread(target=self._return, name="keeper-return", daemon=True).start()

    def _drop(self, sock: socket.socket) -> None:
        """Be without a connection, and fail what waits for answers on this one."""
        with self._lock:
            if self._sock not in {sock, None}:
                return  # there is a new one already
            self._sock = None
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(DaemonUnreachable("The keeper has gone"))

    def _return(self) -> None:
        """Have a keeper again, also when nobody asks for anything: somebody must see the exits."""
        for pause in (0.0, 0.5, 2.0, 10.0):
            time.sleep(pause)
            try:
                self.call("ping")
            except VZError as error:
                logger.warning("no keeper: %s", error)
            else:
                return

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        if "event" in message:
            protocol.close_all(fds)
            self._take_event(message)
            return
        identity = message.get("id")
        if isinstance(identity, str):
            self._take_session_status(identity[1:], message)
        with self._lock:
            future = self._waiting.pop(identity, None) if isinstance(identity, int) else None
        if future is None:  # given up, or of no interest
            protocol.close_all(fds)
        elif "ok" in message:
            future.set_result(Answer(message["ok"], fds))
        else:
            error = message["error"]
            future.set_exception(KeeperFailure(error["step"], error["errno"], error["text"]))

    def _take_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "session":
            self._session_ended(event["session"], event["status"])
            return
        if event["event"] == "exit":
            with self._lock:
                master = self._masters.pop(event["uuid"], None)
            if master is not None:
                os.close(master)
        self._events.put(event)

    def _session_ended(self, name: str, status: int) -> None:
        with self._lock:
            future = self._sessions.pop(name, None)
            if future is None:  # its start is being answered right now
                self._ended[name] = status
        if future is not None:
            future.set_result(status)

    def _take_session_status(self, name: str, message: dict[str, Any]) -> None:
        """After a reconnection; a session that the new keeper does not know has ended somehow."""
        status = message["ok"]["status"] if "ok" in message else 255
        if status is not None:
            self._session_ended(name, status)

    def _keep_master(self, uuid: str, fd: int) -> None:
        former = self._masters.pop(uuid, None)
        if former is not None:
            os.close(former)
        self._masters[uuid] = fd

    def _tell(self) -> None:
        while (event := self._events.get()) is not None:
            if self._listener is not None:
                try:
                    self._listener(event)
                except Exception:  # the listener's defect must not silence later events
                    logger.exception("an event could not be handled: %s", event)


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # A keeper that is stuck must not block us for ever; only sending, we read as long as it is.
        seconds = struct.pack("ll", round(ANSWER_TIMEOUT), 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        sock.connect(os.fspath(path))
    except BaseException:
        sock.close()
        raise
    return sock


def spawn(path: Path, log: Path) -> None:
    """Start a keeper that outlives us; returns when it listens.  Raises DaemonUnreachable.

    posix_spawn, because vzd has threads; every descriptor of ours is close-on-exec.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # No site directories: the keeper needs the standard library and us, and is to stay small.
    package = os.fspath(Path(__file__).parents[2])
    argv = [sys.executable, "-S", "-m", "pyvz.container.keeper"]
    argv += ["--socket", os.fspath(path), "--detach"]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.fspath(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": package}
    pid = os.posix_spawn(sys.executable, argv, env, file_actions=actions, setsid=True)
    _await_listening(pid)


def _await_listening(pid: int) -> None:
    """Wait for the launcher, which ends when the keeper listens (or when there is another)."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(round(LAUNCH_TIMEOUT * 1000)):
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise DaemonUnreachable("The keeper did not start in time")
    finally:
        os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) not in {0, 75}:
        raise DaemonUnreachable("The keeper could not be started", hint="keeper.log has the reason")
