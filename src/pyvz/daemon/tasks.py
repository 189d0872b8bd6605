"""Tasks: operations that run in threads, with progress, a result, and a way to call them off.

`Work` is what is to be done, a plain value; `Task` is one run of it; `Tasks` starts, lists,
cancels and at the end of the daemon awaits them.  An operation sees its task as a
`model.task.Progress`: it tells how far it is, and learns there that it was cancelled.

Threads: the methods of Progress are called by the worker thread, everything else by the event
loop's thread.  Updates cross over in a small queue that merges amounts, so that neither a fast
operation nor a slow client can fill the memory.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Any, NamedTuple

from pyvz.daemon import log
from pyvz.daemon.access import Caller
from pyvz.daemon.replies import Progress as Update
from pyvz.errors import Cancelled, InternalError, InvalidState, NotFound, VZError
from pyvz.model.task import Progress

INTERVAL = 0.1  # seconds between two amounts that are told
QUEUED_UPDATES = 200  # stages kept for a client that reads slowly; older ones are dropped
WORKERS = 32
QUERY_WORKERS = 8

logger = logging.getLogger(__name__)


def _empty(_: object) -> Mapping[str, Any]:
    return {}


class Work(NamedTuple):
    """What a call asks for.

    run: the operation; it gets the task as its Progress.
    reply: turns what `run` returned into the reply's fields.
    cancellable: whether the operation can undo itself half way; others go on without their client.
    """

    verb: str
    ref: str
    run: Callable[[Progress], Any]
    reply: Callable[[Any], Mapping[str, Any]] = _empty
    origin: str = ""
    cancellable: bool = False


class State(StrEnum):
    """The life of a task."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"


class Task:
    """One run of a Work.  Implements model.task.Progress for the operation."""

    def __init__(self, number: int, work: Work, caller: Caller | None) -> None:
        self.id = number
        self.work = work
        self.caller = caller
        self.created = time.time()
        self.state = State.QUEUED
        self.current = Update("", None, None, "")
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._pending: deque[Update] = deque(maxlen=QUEUED_UPDATES)
        self._told = 0.0
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self.outcome: asyncio.Future[Any] = self._loop.create_future()

    # -- model.task.Progress, called by the operation's thread

    def stage(self, text: str) -> None:
        """Begin a named part of the work."""
        self.check()
        self._tell(Update(text, None, None, ""))

    def advance(self, done: int, total: int | None = None, *, unit: str = "B") -> None:
        """Tell how far the part is; told on at most every 0.1 s, and at its end."""
        self.check()
        now = time.monotonic()
        if now - self._told < INTERVAL and done != total:
            return
        self._told = now
        self._tell(Update(self.current.stage, done, total, unit))

    def check(self) -> None:
        """Raise Cancelled when the task was called off."""
        if self._cancelled.is_set():
            raise Cancelled(f"{self.work.verb} of '{self.work.ref}' was called off")

    def _tell(self, update: Update) -> None:
        with self._lock:
            last = self._pending[-1] if self._pending else None
            if last is not None and last.done is not None and last.stage == update.stage:
                self._pending.pop()
            self._pending.append(update)
            self.current = update
        self._loop.call_soon_threadsafe(self._changed.set)

    # -- for the event loop

    def cancel(self) -> bool:
        """Call the task off; False when it cannot be."""
        if not self.work.cancellable or self.outcome.done():
            return False
        self._cancelled.set()
        self.state = State.CANCELLING
        return True

    async def updates(self) -> list[Update]:
        """Wait for what the operation tells next; an empty list means that it has ended."""
        while True:
            self._changed.clear()
            with self._lock:
                updates, self._pending = list(self._pending), deque(maxlen=QUEUED_UPDATES)
            if updates or self.outcome.done():
                return updates
            await self._changed.wait()

    def end(self, result: Any, error: BaseException | None) -> None:  # noqa: ANN401
        """Take the operation's result or error."""
        self.state = State.FAILED if error else State.DONE
        if error is None:
            self.outcome.set_result(result)
        else:
            self.outcome.set_exception(error)
            self.outcome.exception()  # nobody may be waiting any more, and that is fine
        self._changed.set()

    def describe(self) -> dict[str, Any]:
        """Return the task for a list of tasks."""
        return {
            "id": self.id,
            "verb": self.work.verb,
            "ref": self.work.ref,
            "origin": self.work.origin,
            "uid": self.caller.uid if self.caller else 0,
            "pid": self.caller.pid if self.caller else 0,
            "started": self.created,
            "state": str(self.state),
            "cancellable": self.work.cancellable,
            "stage": self.current.stage,
            "done": self.current.done,
            "total": self.current.total,
        }


class Tasks:
    """Every task of this daemon, and the threads that they and the queries run in."""

    def __init__(self, log_file: str) -> None:
        self._log_file = log_file
        self._tasks: dict[int, Task] = {}
        self._last = 0
        self._closed = False
        self.on_end: list[Callable[[Task], None]] = []  # called in the loop for each that ended
        self._workers = ThreadPoolExecutor(WORKERS, "task")
        self._queries = ThreadPoolExecutor(QUERY_WORKERS, "query")

    async def query(self, function: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Run something short in a thread and return its result; not listed, not logged."""
        return await asyncio.get_running_loop().run_in_executor(self._queries, function)

    def start(self, work: Work, caller: Caller | None) -> Task:
        """Start WORK and return its task; `task.outcome` gives the result or the error.

        Raises InvalidState when the daemon is ending.
        """
        if self._closed:
            raise InvalidState("vzd is shutting down", hint="Try again in a few seconds.")
        self._last += 1
        task = Task(self._last, work, caller)
        self._tasks[task.id] = task
        future = asyncio.get_running_loop().run_in_executor(self._workers, self._run, task)
        future.add_done_callback(lambda done: self._ended(task, done))
        return task

    def _run(self, task: Task) -> Any:  # noqa: ANN401
        """Run the operation and log it (in a worker thread)."""
        started = time.monotonic()
        result = "ok"
        message: str | None = None
        try:
            task.check()
            if task.state is State.QUEUED:
                task.state = State.RUNNING
            return task.work.run(task)
        except VZError as error:
            result, message = type(error).__name__, str(error)
            raise
        except Exception as error:
            result, message = "InternalError", repr(error)
            logger.exception("task %d: %s %s", task.id, task.work.verb, task.work.ref)
            raise self.internal_error(task.work.verb, error) from error
        finally:
            caller = task.caller
            log.operation(
                id=task.id,
                verb=task.work.verb,
                ve=task.work.ref or None,
                origin=task.work.origin or None,
                uid=caller.uid if caller else None,
                pid=caller.pid if caller else None,
                result=result,
                seconds=time.monotonic() - started,
                message=message,
            )

    def internal_error(self, what: str, error: BaseException) -> InternalError:
        """Return the error for people about a defect; the log has the traceback."""
        return InternalError(
            f"{what}: internal error ({type(error).__name__}: {error})",
            hint=f"The traceback is in {self._log_file}; please report it.",
        )

    def _ended(self, task: Task, future: asyncio.Future[Any]) -> None:
        self._tasks.pop(task.id, None)
        if future.cancelled():  # it never began: vzd is ending
            task.end(None, Cancelled(f"{task.work.verb} was not begun: vzd is shutting down"))
            return
        error = future.exception()
        task.end(None if error else future.result(), error)
        for listener in self.on_end:
            listener(task)

    def running(self) -> list[Task]:
        """Return the tasks that have not ended, oldest first."""
        return [self._tasks[number] for number in sorted(self._tasks)]

    def cancel(self, number: int) -> None:
        """Call a task off.  Raises NotFound, or InvalidState when it cannot be called off."""
        task = self._tasks.get(number)
        if task is None:
            raise NotFound(f"there is no task {number}")
        if not task.cancel():
            raise InvalidState(f"task {number} ({task.work.verb}) cannot be called off")

    async def drain(self, timeout: float) -> list[Task]:  # noqa: ASYNC109
        """Take no new tasks, call off what can be, wait; return what still runs after TIMEOUT s.

        What is left behind is finished or undone from its journal when vzd starts again.
        """
        self._closed = True
        tasks = self.running()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait([task.outcome for task in tasks], timeout=timeout)
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._queries.shutdown(wait=False, cancel_futures=True)
        return self.running()
