"""What the keeper keeps (inits, sessions, consoles, ends) and the requests that it answers.

The program around it is keeper.py; the messages are in protocol.py; who may ask is root.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import os
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from pyvz.container import handover, launch, netns, protocol, session, stage, swrk
from pyvz.container.connection import Connection
from pyvz.container.console import Console
from pyvz.container.launch import Launch, StepError
from pyvz.container.ledger import Exit, Ledger, Record
from pyvz.container.loop import READ, Loop
from pyvz.container.operation import StartPlan
from pyvz.container.prepared import Prepared
from pyvz.container.reply import Reply
from pyvz.linux import process, syscall

_KEPT_SESSIONS = 256  # ends of sessions that nobody has asked for yet
_ADOPTED_PATIENCE = 2.0  # seconds for the foreign parent of an adopted init to reap it


class Container:
    """One running init."""

    def __init__(self, record: Record, pidfd: int, *, ours: bool) -> None:
        self.record = record
        self.pidfd = pidfd
        self.ours = ours  # our child; else adopted
        self.console: Console | None = None


class Session(NamedTuple):
    """One running program of exec or enter."""

    id: str
    uuid: str
    pid: int
    pidfd: int
    client: int


class Keeper:
    """State and requests.  A request is a method named request_<op>."""

    def __init__(self, listener: socket.socket, lock: int, state: str) -> None:
        self.loop = Loop()
        self.listener = listener
        self.lock = lock
        self.state = state
        self.ledger = Ledger(state)
        self.connections: dict[int, Connection] = {}
        self.containers: dict[str, Container] = {}
        self.sessions: dict[str, Session] = {}
        self.exits: dict[str, Exit] = {}
        self.launches: list[Launch] = []
        self.starting: set[str] = set()
        self.prepared = Prepared()
        self.workers = swrk.Workers(self.loop)
        self.ended_sessions: dict[str, int] = {}
        self.counter = 0
        self._early: dict[int, int] = {}  # wait statuses of children that we do not know yet
        self._programs: dict[bytes, bytes] = {}  # equal seccomp programs are kept once
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """Serve until asked to quit."""
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        # Containers must not lose us because somebody ends a terminal or stops a service.
        signal.signal(signal.SIGTERM, lambda _number, _frame: None)
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        self.loop.add(self._wake, READ, lambda _events: self._children_ended())
        self.loop.add(self.listener.fileno(), READ, lambda _events: self._accept())
        self._children_ended()
        gc.collect()
        gc.freeze()
        while True:
            try:
                self.loop.turn()
            except Exception:  # noqa: BLE001  # one of the four outermost loops (style.md)
                log("a defect: " + traceback.format_exc())
                time.sleep(0.05)  # should it come again at once

    def adopt(self) -> None:
        """Take over what a former keeper has left."""
        for found in self.ledger.load():
            if isinstance(found, Exit):
                self.exits[found.uuid] = found
                continue
            try:
                pidfd = process.Pidfd(found.pid, found.started).fd
            except ProcessLookupError:
                self._note_exit(Exit(found.uuid, found.pid, found.started, None))
                continue
            self.add_container(found, pidfd, ours=False)

    def add_container(self, record: Record, pidfd: int, *, ours: bool) -> Container:
        """Know a running init; one that is not our child is watched by its pidfd."""
        program = self._programs.setdefault(record.seccomp, record.seccomp)
        container = Container(record._replace(seccomp=program), pidfd, ours=ours)
        self.containers[record.uuid] = container
        if not ours:
            self.loop.add(pidfd, READ, lambda _events: self._adopted_ended(container))
        return container

    def add_connection(self, sock: socket.socket, number: int | None = None) -> Connection:
        """Serve one more client."""
        if number is None:
            self.counter += 1
            number = self.counter
        made = Connection(
            self.loop, sock, number, self._dispatch, lambda gone: self._hung_up(gone.number)
        )
        self.connections[number] = made
        return made

    # -- clients --------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("3i", raw)
        if uid != 0:
            sock.close()
            return
        self.add_connection(sock)

    def _hung_up(self, number: int) -> None:
        self.connections.pop(number, None)
        self.prepared.hung_up(number)

    def _dispatch(self, client: Connection, message: dict[str, Any], fds: list[int]) -> None:
        identity, op = message.get("id"), message.get("op")
        reply = Reply(client, identity)
        request: Callable[[Reply, dict[str, Any], list[int]], None] | None
        request = getattr(self, f"request_{op}", None) if isinstance(op, str) else None
        try:
            (request or _unknown)(reply, message, fds)
        except StepError as error:
            reply.fail(error)
        except Exception as error:  # noqa: BLE001  # one of the four outermost loops (style.md)
            name = type(error).__name__
            log(f"request {op}: {name}: {error}")
            reply.fail(StepError(f"answering {op}", 0, f"{name}: {error}"))
        finally:
            protocol.close_all(fds)

    def _publish(self, event: dict[str, Any]) -> None:
        for client in list(self.connections.values()):
            if client.subscribed:
                client.send(event)

    # -- requests -------------------------------------------------------------------------------

    def request_ping(self, reply: Reply, _message: dict[str, Any], _fds: list[int]) -> None:
        """Who are you."""
        reply.ok({"pid": os.getpid(), "started": process.start_time(os.getpid())})

    def request_subscribe(self, reply: Reply, _message: dict[str, Any], _fds: list[int]) -> None:
        """Be told of exits, first of those that nobody has acknowledged."""
        reply.client.subscribed = True
        reply.ok({})
        for end in self.exits.values():
            reply.client.send(end.to_event())

    def request_list(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """All running containers and sessions, or the one container named by `uuid`."""
        running = [
            {"uuid": each.record.uuid, "pid": each.record.pid, "started": each.record.started}
            for each in self.containers.values()
            if message.get("uuid") in (None, each.record.uuid)
        ]
        sessions = [{"id": each.id, "uuid": each.uuid} for each in self.sessions.values()]
        reply.ok({"containers": running, "sessions": sessions, "workers": self.workers.list()})

    def request_ack(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """The end of that very init is known."""
        end = self.exits.get(message["uuid"])
        if end is not None and (end.pid, end.started) == (message["pid"], message["started"]):
            del self.exits[end.uuid]
            if end.uuid not in self.containers:
                self.ledger.forget(end.uuid)
        reply.ok({})

    def request_start(self, reply: Reply, message: dict[str, Any], fds: list[int]) -> None:
        """Start a container's init."""
        made = self._fork_init(message, fds)
        made.reply = reply
        launch.proceed(made, message)

    def request_prepare(self, reply: Reply, message: dict[str, Any], fds: list[int]) -> None:
        """Fork a container's init and have it wait: its network namespace can be furnished."""
        self.prepared.add(self._fork_init(message, fds), message, reply)

    def request_proceed(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """Let a prepared init go on to its exec."""
        self.prepared.proceed(str(message["uuid"]), reply)

    def request_abandon(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """End a prepared init."""
        self.prepared.abandon(str(message["uuid"]))
        reply.ok({})

    def request_network(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """The network namespace, and a route netlink socket in it, of a container (or init pid)."""
        with launch.step("opening its network"):
            pid = message.get("pid") or self._container(message).record.pid
            reply.ok({}, netns.open_network(int(pid)))

    def request_criu(self, reply: Reply, message: dict[str, Any], fds: list[int]) -> None:
        """Fork a CRIU that waits for a request on the socket that the answer carries."""
        self.workers.start(message, fds, reply)

    def request_record(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """What a session in a container, and so whoever restores it, needs to know."""
        reply.ok(self._container(message).record.to_json())

    def request_adopt(self, reply: Reply, message: dict[str, Any], fds: list[int]) -> None:
        """Take an init that CRIU has restored for ours; it has not begun to run."""
        pid = int(message["pid"])
        record = Record.from_json(message["record"])
        if record.uuid in self.containers or pid in self._early:
            raise StepError("adopting the restored init", 17, "it runs already, or has ended")
        pidfd, started = swrk.open_init(pid)
        ours = process.parent_pid(pid) == os.getpid()
        record = record._replace(pid=pid, started=started)
        container = self.add_container(record, pidfd, ours=ours)
        if fds:
            container.console = Console(self.loop, os.dup(fds[0]), record.log)
        self.exits.pop(record.uuid, None)
        self.ledger.living(record)
        reply.ok({"started": started})

    def _fork_init(self, message: dict[str, Any], figures: list[int]) -> Launch:
        uuid = str(message["uuid"])
        if uuid in self.containers or uuid in self.starting:
            raise StepError("starting", 17, "it runs already")
        plan = StartPlan.from_json(message["plan"])
        record = Record(
            uuid=uuid,
            pid=0,
            started=0,
            namespaces=plan.namespaces | syscall.CLONE_NEWCGROUP,
            capabilities=plan.capabilities,
            seccomp=base64.b64decode(message["seccomp"]),
            env=dict(plan.env),
            log=message.get("log"),
            rlimits=plan.rlimits,
            merge=plan.merge,
        )
        order = stage.Order(plan, (), message["ids"] is not None, record.seccomp or None)
        child = launch.start_init(self.loop, message, order).lend(figures)
        self.starting.add(uuid)
        self.launches.append(child)
        child.done = lambda made, error: self._started(made, error, record)
        return child

    def _started(self, made: Launch, error: StepError | None, record: Record) -> None:
        self.launches.remove(made)
        self.starting.discard(record.uuid)
        self.prepared.forget(record.uuid)
        reply: Reply | None = made.reply
        if reply is None:  # it ended while it waited; who asks for it next is told
            return
        if error is not None:
            reply.fail(error)
            return
        record = record._replace(pid=made.pid, started=made.started)
        container = self.add_container(record, made.pidfd, ours=True)
        if made.terminal >= 0:
            container.console = Console(self.loop, made.terminal, record.log)
        self.exits.pop(record.uuid, None)  # whoever starts it knows that it had ended
        self.ledger.living(record)
        masters = [os.dup(made.terminal)] if made.terminal >= 0 else []
        reply.ok({"pid": record.pid, "started": record.started}, masters)

    def request_exec(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """Start a program inside a container."""
        container = self._container(message)
        ours, theirs = session.pipes() if message["window"] is None else ((), ())
        try:
            order = session.order(container.record, container.pidfd, message, theirs)
            child = launch.start_session(self.loop, order, message["cgroup"]["v2_dir"])
        except BaseException:
            protocol.close_all(ours)
            raise
        finally:
            protocol.close_all(theirs)
        self.launches.append(child)
        uuid = container.record.uuid
        child.done = lambda made, error: self._session_started(
            made, error, (uuid, list(ours)), reply
        )

    def _session_started(
        self, made: Launch, error: StepError | None, what: tuple[str, list[int]], reply: Reply
    ) -> None:
        self.launches.remove(made)
        uuid, streams = what
        if error is not None:
            protocol.close_all(streams)
            reply.fail(error)
            return
        self.counter += 1
        opened = Session(
            f"{os.getpid()}.{self.counter}", uuid, made.pid, made.pidfd, reply.client.number
        )
        self.sessions[opened.id] = opened
        fds = streams if made.terminal < 0 else [made.terminal]
        reply.ok({"session": opened.id, "pid": opened.pid}, fds)
        early = self._early.pop(made.pid, None)
        if early is not None:
            self._session_ended(opened, early)

    def request_signal(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """Send a signal to a container's init."""
        with launch.step("sending the signal"):
            syscall.pidfd_send_signal(self._container(message).pidfd, int(message["number"]))
        reply.ok({})

    def request_signal_session(
        self, reply: Reply, message: dict[str, Any], _fds: list[int]
    ) -> None:
        """Send a signal to the process group of a session's program."""
        opened = self.sessions.get(str(message["session"]))
        if opened is None:
            raise StepError("sending the signal", 3, "there is no such session")
        with launch.step("sending the signal"):
            os.killpg(opened.pid, int(message["number"]))  # not reaped yet, so it is it
        reply.ok({})

    def request_session_status(
        self, reply: Reply, message: dict[str, Any], _fds: list[int]
    ) -> None:
        """How a session ended (for a client that lost its connection); status null: it runs."""
        name = str(message["session"])
        if name in self.sessions:
            reply.ok({"status": None})
        elif name in self.ended_sessions:
            reply.ok({"status": self.ended_sessions.pop(name)})
        else:
            raise StepError("looking for the session", 3, "there is no such session")

    def request_console(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """A viewer of the console: a stream socket."""
        with launch.step("opening the console"):
            viewer = self._console(message).attach()
        reply.ok({}, [viewer])

    def request_resize(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """Set the console's window size."""
        with launch.step("setting the window size"):
            self._console(message).resize(int(message["rows"]), int(message["columns"]))
        reply.ok({})

    def request_master(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """A copy of the console's master, for request_return_master of our successor."""
        reply.ok({}, [os.dup(self._console(message).master)])

    def request_return_master(self, reply: Reply, message: dict[str, Any], fds: list[int]) -> None:
        """Take a console's master back that our predecessor had."""
        container = self._container(message)
        if container.console is None and fds:
            container.console = Console(self.loop, fds.pop(), container.record.log)
        reply.ok({})

    def request_quit(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """End; with containers only when forced (they live on and can be adopted)."""
        if (self.containers or self.launches) and not message.get("force"):
            raise StepError("quitting", 16, "containers are running")
        self._quit(reply)

    def _quit(self, reply: Reply | None = None) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.listener.getsockname())  # noqa: PTH108
        if reply is not None:
            reply.ok({})
        os._exit(0)

    def request_upgrade(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """Become a new program image (handover.py); the answer comes from there."""
        if self.launches or self.workers:
            raise StepError("upgrading", 16, "a start is under way; try again")
        self._children_ended()
        with launch.step("upgrading"):
            handover.leave(self, reply.client.number, message["id"])

    def _container(self, message: dict[str, Any]) -> Container:
        found = self.containers.get(str(message["uuid"]))
        if found is None:
            raise StepError("looking for the container", 3, "it is not running")
        return found

    def _console(self, message: dict[str, Any]) -> Console:
        console = self._container(message).console
        if console is None:
            raise StepError("opening the console", 19, "it was lost when the keeper was killed")
        return console

    # -- ends -----------------------------------------------------------------------------------

    def _children_ended(self) -> None:
        with contextlib.suppress(BlockingIOError):  # one byte per signal: its number
            while signals := os.read(self._wake, 4096):
                if signal.SIGTERM in signals and not (self.containers or self.launches):
                    self._quit()
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._child_ended(pid, status)
        if not self.launches and not self.workers:
            self._early.clear()

    def _child_ended(self, pid: int, status: int) -> None:
        worker = self.workers.reaped(pid)
        if worker is not None:
            swrk.end_orphans(worker, self)
            return
        for child in [each for each in self.launches if each.owns(pid)]:
            child.reaped(pid)  # may add the container or session that ends right here
        for container in list(self.containers.values()):
            if container.ours and container.record.pid == pid:
                self._container_ended(container, status)
                return
        for opened in list(self.sessions.values()):
            if opened.pid == pid:
                self._session_ended(opened, status)
                return
        self._early[pid] = status  # an orphan, or a session whose start we have not heard of yet

    def _container_ended(self, container: Container, status: int | None) -> None:
        record = container.record
        self.loop.remove(container.pidfd)
        os.close(container.pidfd)
        del self.containers[record.uuid]
        if container.console is not None:
            container.console.close()
        self._note_exit(Exit(record.uuid, record.pid, record.started, status))

    def _note_exit(self, end: Exit) -> None:
        self.exits[end.uuid] = end
        self.ledger.ended(end)
        self._publish(end.to_event())

    def _adopted_ended(self, container: Container, since: float | None = None) -> None:
        """Learn a foreign child's status: from the zombie, or once its parent has reaped it."""
        self.loop.remove(container.pidfd)
        since = since or time.monotonic()
        record = container.record
        status = process.zombie_status(record.pid, record.started)
        if status is None:
            with contextlib.suppress(OSError):
                status = syscall.pidfd_info(container.pidfd).exit_status
        if status is None and time.monotonic() - since < _ADOPTED_PATIENCE:
            self.loop.after(0.02, lambda: self._adopted_ended(container, since))
            return
        self._container_ended(container, status)

    def _session_ended(self, opened: Session, status: int) -> None:
        os.close(opened.pidfd)
        del self.sessions[opened.id]
        code = os.waitstatus_to_exitcode(status)
        code = code if code >= 0 else 128 - code
        client = self.connections.get(opened.client)
        if client is not None:
            client.send({"event": "session", "session": opened.id, "status": code})
            return
        self.ended_sessions[opened.id] = code
        while len(self.ended_sessions) > _KEPT_SESSIONS:
            del self.ended_sessions[next(iter(self.ended_sessions))]


def _unknown(_reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
    raise StepError("asking", 0, f"the keeper knows no request '{message.get('op')}'")


def log(text: str) -> None:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    os.write(2, f"{stamp} keeper[{os.getpid()}]: {text}\n".encode(errors="replace"))
