"""QMP: the way to tell a running QEMU what to do, and to hear what happened.

qemu.qmp speaks asyncio, the operations are synchronous: one loop in one thread serves the monitors
of all machines.  QEMU takes one client at a time on its socket, so vzd keeps its connection; when
it dies, the next vzd connects.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError, Runstate

from pyvz.errors import MonitorError, NotRunning, Timeout, VZError

T = TypeVar("T")
Event = dict[str, Any]

ANSWER = 30.0  # seconds for the answer to a command
_POLL = 0.05

logger = logging.getLogger(__name__)
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # it logs every end as an error


class Loop:
    """The loop in its thread, started when it is first needed."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run WORK in the loop and wait for it; raises Timeout (the work is called off)."""
        future = self.begin(work)
        try:
            return future.result(timeout)
        except FutureTimeout:
            future.cancel()
            raise Timeout(f"QEMU did not answer within {timeout:g} s") from None

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run WORK in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._running())

    def later(self, delay: float, callback: Callable[[], object]) -> None:
        """Call CALLBACK, which does not wait, in the loop after DELAY seconds."""
        loop = self._running()
        loop.call_soon_threadsafe(loop.call_later, delay, callback)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._guard:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                name = "monitors"
                threading.Thread(target=self._loop.run_forever, name=name, daemon=True).start()
            return self._loop

    def close(self) -> None:
        """Stop it; connections are closed with it."""
        with self._guard:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)


class Monitor:
    """The connection to one QEMU.  Made by `connect`; safe for threads."""

    def __init__(self, loop: Loop, name: str, on_event: Callable[[Event], None]) -> None:
        self.name = name
        self.state = ""  # as query-status tells it: running, paused, suspended, ...
        self._stopped = "paused"  # what the next STOP means
        self.ended = threading.Event()
        self.shutdown: Event = {}  # why it ends, once QEMU has said so
        self._loop = loop
        self._client = QMPClient(name)
        self._on_event = on_event
        self._resumed = asyncio.Event()
        self._changed = threading.Condition()
        self._seen: list[Event] = []
        self.told = 0  # events so far

    @classmethod
    def begin(
        cls,
        loop: Loop,
        path: Path,
        on_event: Callable[[Event], None],
        *,
        timeout: float,
        state: str = "",
    ) -> Future[Monitor]:
        """Connect to the QEMU that listens at PATH; the result raises NotRunning, Timeout.

        state: what it does, where that is known; else it is asked.
        """
        monitor = cls(loop, path.parent.name, on_event)
        monitor.state = state
        return loop.begin(monitor._opened(path, timeout))

    async def _opened(self, path: Path, timeout: float) -> Monitor:  # noqa: ASYNC109
        try:
            async with asyncio.timeout(timeout):
                await self._open(path)
        except TimeoutError:
            raise Timeout(f"QEMU did not answer within {timeout:g} s") from None
        except (QMPError, OSError, EOFError) as error:
            raise NotRunning("QEMU does not answer on its monitor", details=str(error)) from error
        return self

    async def _open(self, path: Path) -> None:
        await self._client.connect(str(path))
        listener = EventListener()
        self._client.register_listener(listener)
        self._tasks = [
            asyncio.ensure_future(self._listen(listener)),
            asyncio.ensure_future(self._await_end()),
        ]
        if not self.state:
            answer: Any = await self._client.execute("query-status")
            self.state = str(answer["status"])

    async def _listen(self, listener: EventListener) -> None:
        async for message in listener:
            event = dict(message)
            self._note(event)
            try:
                self._on_event(event)
            except Exception:
                logger.exception("%s: event %s", self.name, event.get("event"))

    def _note(self, event: Event) -> None:
        name = event.get("event")
        if name == "BLOCK_IO_ERROR" and event.get("data", {}).get("action") == "stop":
            self._stopped = "io-error"  # QEMU's word for the stop that follows
        if name == "GUEST_PANICKED":
            self._stopped = "guest-panicked"  # and of that one
        if name == "RESUME":
            self._stopped = "paused"
            self._resumed.set()
        states = {"STOP": self._stopped, "RESUME": "running", "SHUTDOWN": "shutdown"}
        if name in states:
            self.state = states[name]
        if name == "SHUTDOWN":
            self.shutdown = event
        with self._changed:
            self._seen = [*self._seen[-63:], event]
            self.told += 1
            self._changed.notify_all()

    async def _await_end(self) -> None:
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()
        with suppress(Exception):
            await self._client.disconnect()
        for task in self._tasks[:1]:
            task.cancel()
        with self._changed:
            self.ended.set()
            self._changed.notify_all()
        self._on_event({"event": "PYVZ_END"})

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout: float = ANSWER
    ) -> Any:  # noqa: ANN401  JSON
        """Run a command and return its answer; raises MonitorError, NotRunning, Timeout."""
        return self._answer(self._client.execute(command, arguments), command, timeout)

    def go(self) -> None:
        """Let the processors run (`cont`); raises as `execute` does.

        QEMU tells that they run before it answers: then the guest is in its way already.
        """
        self._answer(self._go(), "cont", ANSWER)

    async def _go(self) -> None:
        self._resumed.clear()
        answer = asyncio.ensure_future(self._client.execute("cont"))
        resumed = asyncio.ensure_future(self._resumed.wait())
        try:
            await asyncio.wait({answer, resumed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            resumed.cancel()
        if answer.done():
            answer.result()
        else:
            answer.add_done_callback(lambda late: late.cancelled() or late.exception())

    def add_file(self, descriptor: int) -> str:
        """Give QEMU a descriptor and return the name by which it may open it."""
        answer = self._answer(self._with_descriptor(descriptor, "add-fd", {}), "add-fd", ANSWER)
        return f"/dev/fdset/{answer['fdset-id']}"

    def remove_file(self, name: str) -> None:
        """Take back the name that add_file returned; what QEMU has opened stays open."""
        self.execute("remove-fd", {"fdset-id": int(name.rpartition("/")[2])})

    def give(self, descriptor: int, name: str) -> None:
        """Give QEMU a descriptor under a name (for tap devices and saved states)."""
        work = self._with_descriptor(descriptor, "getfd", {"fdname": name})
        self._answer(work, "getfd", ANSWER)

    async def _with_descriptor(self, descriptor: int, command: str, arguments: Event) -> object:
        self._client.send_fd_scm(descriptor)
        return await self._client.execute(command, arguments)

    def _answer(self, work: Coroutine[Any, Any, object], command: str, timeout: float) -> Any:  # noqa: ANN401
        try:
            return self._loop.run(work, timeout)
        except ExecuteError as error:
            raise MonitorError(f"QEMU refused {command}: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            raise NotRunning("The virtual machine has ended", details=str(error)) from error

    def wait_event(
        self, names: set[str], timeout: float, wanted: Callable[[Event], bool] = lambda _: True
    ) -> Event:
        """Wait for one of these events, also a recent one; raises Timeout, NotRunning."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for event in self._seen:
                    if event.get("event") in names and wanted(event):
                        return event
                if self.ended.is_set():
                    raise NotRunning("The virtual machine has ended")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Timeout(f"QEMU did not tell {' or '.join(sorted(names))} in time")
                self._changed.wait(left)

    def doze(self, timeout: float, since: int) -> None:
        """Sleep, but wake when QEMU tells something, or has since it had `told` so much."""
        with self._changed:
            self._changed.wait_for(lambda: self.told != since or self.ended.is_set(), timeout)

    def recent(self, name: str, wanted: Callable[[Event], bool]) -> Event | None:
        """Return the data of the last event NAME that was seen and is WANTED (by its data)."""
        with self._changed:
            seen = [dict(each.get("data", {})) for each in self._seen if each["event"] == name]
        return next((data for data in reversed(seen) if wanted(data)), None)

    def forget_events(self) -> None:
        """Forget events that were seen, before an action whose events are to be awaited."""
        with self._changed:
            self._seen = []

    def job(self, command: str, arguments: dict[str, Any], *, timeout: float) -> None:
        """Run a command that makes a job `job-id`, to the job's end; raises MonitorError."""
        name = arguments["job-id"]
        self.execute(command, arguments)
        deadline = time.monotonic() + timeout
        try:
            while True:
                told = self.told
                jobs = {each["id"]: each for each in self.execute("query-jobs")}
                job = jobs.get(name, {"status": "null"})
                if job["status"] in {"concluded", "null"}:
                    break
                if time.monotonic() > deadline:
                    raise Timeout(f"{command} was not done within {timeout:g} s")
                self.doze(_POLL, told)
        finally:
            with suppress(VZError):
                self.execute("job-dismiss", {"id": name})
        if job.get("error"):
            raise MonitorError(f"QEMU could not do {command}: {job['error']}")

    def close(self) -> None:
        """Hang up; QEMU goes on."""

        async def hang_up() -> None:
            with suppress(Exception):
                await self._client.disconnect()

        with suppress(Timeout):
            self._loop.run(hang_up(), 5.0)
