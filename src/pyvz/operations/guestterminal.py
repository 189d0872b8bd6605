"""A terminal inside a virtual machine: `prlctl enter`, by nothing but the guest's agent.

The agent knows no terminals, but script(1) inside makes one.  What the user types the agent writes
into a named pipe, what the guest shows it reads from a file that grows, some times a second while
something moves.  (Not from a pipe: it loses what it read before a pipe was empty.)  What was read
is punched out of the file.  Each look is a conversation of its own, so that the agent serves others
as well.

    client -- pty -- this thread -- agent -- <d>/in, <d>/out -- script -- pty -- shell

The guest is hostile: what it shows has a limit for each look, and every wait a deadline.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import logging
import os
import pty
import select
import shlex
import struct
import termios
import threading
import tty
from concurrent.futures import Future
from contextlib import suppress
from typing import Final
from uuid import uuid4

from pyvz.container.runtime import ExecRequest
from pyvz.errors import AgentError, ExecError, Unsupported, VZError
from pyvz.model.environment import Environment
from pyvz.operations import machineguest
from pyvz.operations.node import Node
from pyvz.vm.agent import Agent, Ended

log = logging.getLogger(__name__)

_SETUP: Final = """
command -v script >/dev/null || { echo "there is no program script(1) inside" >&2; exit 1; }
umask 077
for place in /run /tmp; do
    d=$place/pyvz-$1
    mkdir $d 2>/dev/null && mkfifo $d/in && : >$d/out && cat >$d/run && { echo "$d"; exit 0; }
done
exit 1
"""
_RUN: Final = """tty >{0}/tty
stty rows {1} cols {2} 2>/dev/null
{3}
echo $? >{0}/status
"""
_SHELL: Final = """
script -q -f -c "sh $1/run" /dev/null <$1/in >>$1/out 2>&1
s=$(cat $1/status 2>/dev/null)
exit ${s:-255}
"""
_SIZE: Final = 'stty rows "$2" cols "$3" <"$(cat $1/tty)"'
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CHUNK: Final = 64 << 10  # bytes for one look
_TYPED: Final = 4096  # as many are at home in a pipe
_KEPT: Final = 1 << 20  # bytes of what was shown that may stay in the file
_BUSY, _IDLE = 0.03, 0.3  # seconds between two looks
_COOLS: Final = 1.3  # how much longer each look without anything is
_PATIENCE: Final = 15.0  # seconds without an answer, after which the terminal is given up
_LOOK: Final = 5.0


class GuestTerminal:
    """A program at a terminal inside, with the face of container.runtime.Session.

    Raises NoAgent, ExecError, Unsupported (no script(1) inside).
    """

    def __init__(self, node: Node, env: Environment, request: ExecRequest) -> None:
        if request.user not in {None, "root", "0"}:
            raise Unsupported("Programs in a virtual machine run as its root only")
        self._node, self._env, self._request = node, env, request
        self.id = str(uuid4())
        self.exit: Future[int] = Future()
        self._ended = False
        self._read = self._punched = 0  # bytes of what was shown
        with machineguest.agent(node, env) as talk:
            self._place = self._set_up(talk)
            try:
                # Both ways, so that nobody waits for anybody who reads it.
                self._in = _opened(talk, f"{self._place}/in", "r+")
                self._out = _opened(talk, f"{self._place}/out", "r")
                variables = [_PATH, *(f"{name}={value}" for name, value in request.env)]
                words = ["/bin/sh", "-c", _SHELL, "sh", self._place]
                self._number = talk.start(words, env=variables)
            except BaseException:
                _remove(talk, self._place)
                raise
        master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._slave, False)
        self._size = request.terminal or (0, 0)
        self.fds = (master,)
        threading.Thread(target=self._serve, name="guest terminal", daemon=True).start()

    def _set_up(self, talk: Agent) -> str:
        """Make the directory with the pipes; returns where it is."""
        rows, columns = self._request.terminal or (24, 80)
        command = shlex.join(self._request.argv)
        done = talk.run(
            ["/bin/sh", "-c", _SETUP, "sh", self.id],
            data=_RUN.format("$(dirname $0)", rows, columns, command).encode(),
        )
        place = done.stdout.decode("utf-8", "replace").strip()
        if done.status or place not in {f"/run/pyvz-{self.id}", f"/tmp/pyvz-{self.id}"}:  # noqa: S108
            raise Unsupported(
                f"{self._env.name} has no terminal for us",
                details=_words(done),
                hint="Use prlctl console, or ssh.",
            )
        return place

    def signal(self, number: int) -> None:
        """Send a signal to the program; nothing happens when it has ended."""
        if not self.exit.done():
            with machineguest.agent(self._node, self._env) as talk:
                talk.start(["kill", f"-{number}", str(self._number)])

    def _serve(self) -> None:
        status = 255
        try:
            status = self._until_end()
        except (VZError, OSError) as error:
            with suppress(OSError):
                os.write(self._slave, f"\r\n{error}\r\n".encode())
        except Exception:
            log.exception("the terminal inside %s", self._env.name)
        finally:
            os.close(self._slave)
            self.exit.set_result(status)
            with suppress(VZError), machineguest.agent(self._node, self._env) as talk:
                self._clean_up(talk)

    def _clean_up(self, talk: Agent) -> None:
        """Take away what is left inside, the program too when it was given up."""
        if not self._ended:
            talk.start(["kill", "-HUP", str(self._number)])
        for handle in (self._in, self._out):
            with suppress(VZError):
                talk.call("guest-file-close", {"handle": handle})
        _remove(talk, self._place)

    def _until_end(self) -> int:
        """Pass on what is typed and shown, until the program has ended."""
        pause, silent, pending = _BUSY, 0.0, b""
        while True:
            typed = self._typed(pause)
            pending += typed
            try:
                with machineguest.agent(self._node, self._env, patience=_LOOK) as talk:
                    ended = talk.finished(self._number)  # before what it has shown is read
                    if pending:
                        _write(talk, self._in, pending)
                        pending = b""
                    shown = self._shown(talk)
                    self._resize(talk)
            except AgentError:
                raise
            except VZError:
                silent += _LOOK
                if silent > _PATIENCE or self._env.uuid not in self._node.machines.running():
                    raise
                continue
            silent = 0.0
            if ended is not None:
                self._ended = True
                return ended.status
            pause = _BUSY if typed or shown else min(_IDLE, pause * _COOLS)

    def _typed(self, patience: float) -> bytes:
        """Return what the client has written; waits PATIENCE seconds for it."""
        if not select.select([self._slave], [], [], patience)[0]:
            return b""
        try:
            data = os.read(self._slave, _TYPED)
        except BlockingIOError:
            return b""
        if not data:
            raise ExecError("Nobody is at the terminal any more")
        return data

    def _shown(self, talk: Agent) -> bool:
        """Show what there is to be shown; whether there was anything."""
        anything = False
        for _ in range(16):
            data = _read(talk, self._out)
            if not data:
                break
            anything = True
            self._read += len(data)
            view = memoryview(data)
            while view:
                # As long as the user likes (Ctrl-S); one who has gone is an error of the write.
                select.select([], [self._slave], [])
                view = view[os.write(self._slave, view) :]
        if self._read - self._punched > _KEPT:
            self._punched = self._read
            words = ["-p", "-o", "0", "-l", str(self._read), f"{self._place}/out"]
            with suppress(VZError):  # it only costs room
                talk.start(["fallocate", *words])
        return anything

    def _resize(self, talk: Agent) -> None:
        """Give the terminal inside the size that the client's has now."""
        packed = fcntl.ioctl(self._slave, termios.TIOCGWINSZ, bytes(8))
        rows, columns, *_ = struct.unpack("4H", packed)
        if rows and columns and (rows, columns) != tuple(self._size):
            self._size = (rows, columns)
            talk.start(["/bin/sh", "-c", _SIZE, "sh", self._place, str(rows), str(columns)])


def _opened(talk: Agent, path: str, mode: str) -> int:
    """Return the agent's handle of a file."""
    handle = talk.call("guest-file-open", {"path": path, "mode": mode})
    if not isinstance(handle, int):
        raise ExecError("The guest agent's answer makes no sense")
    return handle


def _write(talk: Agent, handle: int, data: bytes) -> None:
    words = {"handle": handle, "buf-b64": base64.b64encode(data).decode()}
    talk.call("guest-file-write", words)
    talk.call("guest-file-flush", {"handle": handle})


def _read(talk: Agent, handle: int) -> bytes:
    """Return what a file has grown by."""
    answer = talk.call("guest-file-read", {"handle": handle, "count": _CHUNK})
    try:
        return base64.b64decode(answer["buf-b64"])[:_CHUNK]
    except (TypeError, KeyError, ValueError, binascii.Error) as error:
        raise ExecError("The guest agent's answer makes no sense") from error


def _remove(talk: Agent, place: str) -> None:
    with suppress(VZError):
        talk.start(["rm", "-rf", place])


def _words(done: Ended) -> str:
    return done.stderr[:300].decode("utf-8", "replace").strip()
