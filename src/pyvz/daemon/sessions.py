"""Programs that run inside containers for a client: their exit, and their end without the client.

The data of a session flows between the client and the container directly (the client got the
descriptors); vzd only waits for the exit status, and no thread waits with it.  When the client
goes away the program gets SIGHUP, as when a terminal is closed, and SIGKILL 5 seconds later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from asyncvarlink import FileDescriptor

from pyvz.container.runtime import ExecRequest, Session
from pyvz.daemon.replies import SessionReply
from pyvz.daemon.tasks import Task
from pyvz.errors import NotFound, VZError
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.operations import execute
from pyvz.operations.guestterminal import GuestTerminal
from pyvz.operations.machineguest import GuestSession
from pyvz.operations.node import Node

Inside = Session | GuestSession | GuestTerminal
GRACE = 5.0  # seconds between SIGHUP and SIGKILL

logger = logging.getLogger(__name__)


class Program:
    """One program to run inside an environment, and its session once it runs."""

    def __init__(self, node: Node, ref: str, request: ExecRequest, *, offline: bool) -> None:
        self._node = node
        self._ref = ref
        self._request = request
        self._offline = offline
        self._minimal: Environment | None = None
        self.session: Inside | None = None

    def open(self) -> None:
        """Start it (in a thread); remembers whether the environment was started only for it."""
        if self._offline:
            env = self._node.registry.resolve(self._ref)
            if self._node.status(env) in {Status.STOPPED, Status.MOUNTED}:
                self._minimal = env
        self.session = execute.open_session(
            self._node, self._ref, self._request, offline=self._offline
        )

    def close(self) -> None:
        """End the minimal start that was made for it (in a thread)."""
        if self._minimal is not None and self.session is not None:
            execute.end_minimal(self._node, self._minimal)

    @property
    def running(self) -> Inside:
        """The session; only after `open`."""
        if self.session is None:
            raise RuntimeError("the session is not open")
        return self.session

    def describe(self) -> SessionReply:
        """Return the first reply; the descriptors are closed here when they have been sent."""
        names = ["terminal"] if self._request.terminal else ["stdin", "stdout", "stderr"]
        descriptors = [FileDescriptor(fd, should_close=True) for fd in self.running.fds]
        return {"id": self.running.id, "streams": names, "descriptors": descriptors}

    async def exit_status(self) -> int:
        """Wait for its end."""
        return await asyncio.shield(asyncio.wrap_future(self.running.exit))


class Sessions:
    """The sessions of this daemon; used in the event loop only."""

    def __init__(self) -> None:
        self._open: dict[str, Inside] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def opened(self, program: Program, task: Task) -> AsyncIterator[None]:
        """Wait for TASK to open PROGRAM, and see to its end when the block is left early."""
        try:
            await asyncio.shield(task.outcome)
        except asyncio.CancelledError:
            task.outcome.add_done_callback(lambda _: self._abandon(program, unsent=True))
            raise
        session = program.running
        self._open[session.id] = session
        try:
            yield
        finally:
            self._open.pop(session.id, None)
            self._abandon(program, unsent=False)

    async def signal(self, session_id: str, number: int) -> None:
        """Send a signal to a session's program; raises NotFound."""
        session = self._open.get(session_id)
        if session is None:
            raise NotFound(f"there is no session {session_id}")
        await asyncio.to_thread(session.signal, number)

    def _abandon(self, program: Program, *, unsent: bool) -> None:
        """End a program, if it has not ended, and what was started for it, in the background."""
        if program.session is None:
            return
        if unsent:
            for fd in program.session.fds:
                with suppress(OSError):
                    os.close(fd)
        task = asyncio.create_task(self._end(program, program.session))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, program: Program, session: Inside) -> None:
        for number in (signal.SIGHUP, signal.SIGKILL):
            if session.exit.done():
                break
            with suppress(VZError, OSError):  # it ended in this very moment
                await asyncio.to_thread(session.signal, number)
            exit_status = asyncio.wrap_future(session.exit)
            await asyncio.wait({exit_status}, timeout=GRACE)
        if not session.exit.done():
            logger.warning("session %s does not end after SIGKILL", session.id)
        try:
            await asyncio.to_thread(program.close)
        except VZError as error:
            logger.warning("session %s: %s", session.id, error)
