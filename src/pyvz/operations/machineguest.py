"""The inside of a virtual machine: programs, passwords and frozen file systems by its agent; its
screen and keyboard by the monitor; its serial console.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from uuid import uuid4

from pyvz.container.runtime import ExecRequest
from pyvz.errors import (
    AgentError,
    BadValue,
    ExecError,
    InvalidState,
    NoAgent,
    NotRunning,
    PasswordError,
    Unsupported,
    VZError,
)
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.operations.node import Node
from pyvz.operations.options import NewPassword
from pyvz.vm import channels
from pyvz.vm.agent import SYNC, Agent, pauses

log = logging.getLogger(__name__)

MAX_INPUT = 8 << 20  # bytes: the agent takes the input whole, before the program begins
SILENCE = 0.3  # seconds without a byte, after which there is no input
INPUT = 60.0  # seconds for input that has begun to end
SCREEN = 30.0
APPEARS = 2.0  # seconds
_LOST = 4  # questions in a row that the agent may leave unanswered while a program runs


def require_running(node: Node, env: Environment) -> None:
    """Raise NotRunning unless the guest can answer."""
    status = node.status(env)
    if status == Status.PAUSED:
        raise NotRunning(f"{env.name} is paused", hint="Let it go on with: prlctl resume")
    if status not in {Status.RUNNING, Status.STOPPING}:
        raise NotRunning(f"{env.name} is not running")


def agent(node: Node, env: Environment, *, patience: float = SYNC) -> Agent:
    """Return a conversation with the agent; raises NotRunning, NoAgent (after PATIENCE seconds)."""
    require_running(node, env)
    if not channels.has_agent(node.machines.monitor(env.uuid)):
        raise NoAgent(
            "The guest agent does not answer",
            hint="Install qemu-guest-agent inside, or wait until the guest has booted.",
        )
    return Agent(lambda: node.machines.connect(env.uuid, "agent"), patience=patience)


def await_agent(node: Node, env: Environment, patience: float = APPEARS) -> None:
    """Wait a moment for the agent's port: a machine that has just moved tells of it a bit later."""
    require_running(node, env)
    deadline = time.monotonic() + patience
    while not channels.has_agent(node.machines.monitor(env.uuid)) and time.monotonic() < deadline:
        time.sleep(0.1)


class GuestSession:
    """A program inside, with the face of container.runtime.Session.

    The agent takes input whole and gives output at the end; a terminal: guestterminal.py.
    """

    def __init__(self, node: Node, env: Environment, request: ExecRequest) -> None:
        if request.user not in {None, "root", "0"}:
            raise Unsupported("Programs in a virtual machine run as its root only")
        if not request.argv or any("\0" in word for word in request.argv):
            raise BadValue("There is no program to run")
        self._node, self._env, self._request = node, env, request
        self.id = str(uuid4())
        self.exit: Future[int] = Future()
        self._number = 0
        await_agent(node, env)
        with agent(node, env):  # whether there is one is told at once
            pass
        stdin, out, err = (os.pipe2(os.O_CLOEXEC) for _ in range(3))
        self.fds = (stdin[1], out[0], err[0])
        inner = (stdin[0], out[1], err[1])
        threading.Thread(target=self._run, args=inner, name="guest exec", daemon=True).start()

    def signal(self, number: int) -> None:
        """Send a signal to the program; nothing happens when it has ended."""
        if self._number and not self.exit.done():
            with agent(self._node, self._env) as talk:
                talk.start(["kill", f"-{number}", str(self._number)])

    def _run(self, stdin: int, out: int, err: int) -> None:
        try:
            status = self._whole(stdin, out, err)
        except (VZError, OSError) as error:
            with contextlib.suppress(OSError):
                os.write(err, f"{error}\n".encode())
            status = 255
        except BaseException:
            log.exception("a program inside %s", self._env.name)
            status = 255
        for descriptor in (stdin, out, err):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.exit.set_result(status)

    def _whole(self, stdin: int, out: int, err: int) -> int:
        data = _gather(stdin)
        env = [f"{name}={value}" for name, value in self._request.env]
        with agent(self._node, self._env) as talk:
            self._number = talk.start(list(self._request.argv), env=env or None, data=data)
        lost = 0
        for tick in pauses():
            try:
                with Agent(lambda: self._node.machines.connect(self._env.uuid, "agent")) as talk:
                    ended = talk.finished(self._number)
                lost = 0
            except AgentError:
                raise
            except VZError:
                lost += 1
                if lost > _LOST or self._env.uuid not in self._node.machines.running():
                    raise
                ended = None
            if ended is not None:
                break
            time.sleep(tick)
        else:  # pragma: no cover  pauses() never ends
            raise ExecError("the program has no end")
        _write(out, ended.stdout)
        _write(err, ended.stderr)
        if ended.truncated:
            _write(err, b"prlctl: the guest agent has cut the output\n")
        return ended.status


def _gather(descriptor: int) -> bytes:
    """Read the input of a program to its end; one that nobody begins to write is empty."""
    data = bytearray()
    patience = SILENCE
    while select.select([descriptor], [], [], patience)[0]:
        part = os.read(descriptor, 1 << 16)
        if not part:
            break
        data += part
        patience = INPUT
        if len(data) > MAX_INPUT:
            raise ExecError(f"A program in a virtual machine takes {MAX_INPUT >> 20} MiB of input")
    return bytes(data)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    with contextlib.suppress(BrokenPipeError):
        while view:
            view = view[os.write(descriptor, view) :]


def set_password(node: Node, env: Environment, new: NewPassword) -> None:
    """Set a user's password inside by the agent; raises PasswordError, NoAgent."""
    words = {
        "username": new.user,
        "password": base64.b64encode(new.secret.reveal().encode()).decode(),
        "crypted": new.crypted,
    }
    try:
        with agent(node, env) as talk:
            talk.call("guest-set-user-password", words)
    except AgentError as error:
        raise PasswordError(
            f"The password of {new.user} in {env.name} was not changed", details=error.message
        ) from error


@contextlib.contextmanager
def frozen(node: Node, env: Environment) -> Iterator[bool]:
    """Keep the guest's file systems still for the block; gives whether its agent could.

    A guest without an agent is taken as it is, as after a power failure.
    """
    done = False
    try:
        with agent(node, env) as talk:
            talk.call("guest-fsfreeze-freeze", timeout=60.0)
            done = True
    except VZError as error:
        log.info("%s: its file systems are not frozen: %s", env.name, error)
    try:
        yield done
    finally:
        if done:
            with contextlib.suppress(VZError), agent(node, env) as talk:
                talk.call("guest-fsfreeze-thaw", timeout=60.0)


def capture(node: Node, ref: str) -> bytes:
    """Return the screen as PNG; raises NotRunning."""
    env = _running(node, ref)
    monitor = node.machines.monitor(env.uuid)
    memory = os.memfd_create("screen", os.MFD_CLOEXEC)
    try:
        # QEMU wants a descriptor that is open as it would have opened the file: for writing only.
        writing = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            name = monitor.add_file(writing)
        finally:
            os.close(writing)
        try:
            words = {"filename": name, "format": "png"}
            monitor.execute("screendump", words, timeout=SCREEN)
        finally:
            with contextlib.suppress(VZError):
                monitor.remove_file(name)
        os.lseek(memory, 0, os.SEEK_SET)
        with os.fdopen(os.dup(memory), "rb") as file:
            return file.read()
    finally:
        os.close(memory)


def send_key(
    node: Node, ref: str, key: str, event: str | None = None, scancode: int | None = None
) -> None:
    """Press, release, or (event None) press and release a key; raises BadValue, NotRunning.

    key: QEMU's name ("ret", "ctrl-alt-delete").  scancode: a number of the PC keyboard instead.
    """
    env = _running(node, ref)
    monitor = node.machines.monitor(env.uuid)
    keys = _keys(key, scancode)
    if event is None:
        monitor.execute("send-key", {"keys": keys})
        return
    if event not in {"press", "release"}:
        raise BadValue(f"'{event}' is not one of press, release")
    events = [{"type": "key", "data": {"down": event == "press", "key": each}} for each in keys]
    monitor.execute("input-send-event", {"events": events})


def press(node: Node, env: Environment, codes: Sequence[int], *, hold: int = 0) -> None:
    """Press keys of a PC together, by their scan codes, for HOLD milliseconds (0: as usual)."""
    require_running(node, env)
    keys = [key for code in codes for key in _keys("", code)]
    arguments: dict[str, object] = {"keys": keys}
    if hold:
        arguments["hold-time"] = hold
    node.machines.monitor(env.uuid).execute("send-key", arguments)


def _keys(key: str, scancode: int | None) -> list[dict[str, object]]:
    if scancode is not None:
        if not 0 < scancode < 0xE080:
            raise BadValue(f"{scancode} is not a scan code")
        return [{"type": "number", "data": scancode}]
    names = key.lower().split("-") if key else []
    if not names or not all(name.replace("_", "").isalnum() for name in names):
        raise BadValue(f"'{key}' is not a key; give names like ret, a, f2, ctrl-alt-delete")
    return [{"type": "qcode", "data": name} for name in names]


def console(node: Node, env: Environment) -> int:
    """Return a socket that is the first serial port; one viewer at a time."""
    if env.uuid not in node.machines.running():
        raise NotRunning(f"{env.name} is not running")
    ports = [port for port in node.registry.config(env).machine.serials if port.name == "serial0"]
    if ports and ports[0].kind:
        raise InvalidState(f"serial0 of {env.name} leads elsewhere: it has no console")
    return node.machines.connect(env.uuid, "console").detach()


def _running(node: Node, ref: str) -> Environment:
    env = node.registry.resolve(ref)
    if env.uuid not in node.machines.running():
        raise NotRunning(f"{env.name} is not running")
    return env
