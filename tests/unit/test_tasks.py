"""Tasks: progress, cancellation, errors, the end of the daemon."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from pyvz.daemon.tasks import State, Task, Tasks, Work
from pyvz.errors import Cancelled, InternalError, InvalidState, NotFound, NotRunning
from pyvz.model.task import Progress


async def _all_updates(task: Task) -> list[tuple[str, int | None]]:
    found = []
    while updates := await task.updates():
        found += [(update.stage, update.done) for update in updates]
    return found


def test_result_and_progress() -> None:
    def work(progress: Progress) -> int:
        progress.stage("one")
        progress.advance(1, 2)
        progress.advance(2, 2)
        progress.stage("two")
        return 42

    async def scenario() -> tuple[list[tuple[str, int | None]], int]:
        task = Tasks("x.log").start(Work("do", "ct1", work), None)
        updates = await _all_updates(task)
        return updates, await task.outcome

    updates, result = asyncio.run(scenario())
    assert result == 42
    assert [stage for stage, _ in updates] == sorted(
        (stage for stage, _ in updates), key=["one", "two"].index
    )
    assert updates[-1] == ("two", None)


def test_amounts_are_rate_limited_and_merged() -> None:
    def work(progress: Progress) -> None:
        progress.stage("unpack")
        for done in range(10000):
            progress.advance(done, 10000)
        progress.advance(10000, 10000)

    async def scenario() -> list[tuple[str, int | None]]:
        return await _all_updates(Tasks("x.log").start(Work("do", "", work), None))

    updates = asyncio.run(scenario())
    assert updates[-1] == ("unpack", 10000)
    assert len(updates) < 50


def test_cancel_reaches_the_operation_which_undoes_itself() -> None:
    undone = threading.Event()

    def work(progress: Progress) -> None:
        try:
            while True:
                progress.check()
                time.sleep(0.002)
        finally:
            undone.set()

    async def scenario() -> None:
        tasks = Tasks("x.log")
        task = tasks.start(Work("create", "ct1", work, cancellable=True), None)
        await asyncio.sleep(0.02)
        assert [each.id for each in tasks.running()] == [task.id]
        tasks.cancel(task.id)
        assert task.state is State.CANCELLING
        with pytest.raises(Cancelled):
            await task.outcome
        assert tasks.running() == []

    asyncio.run(scenario())
    assert undone.is_set()


def test_what_cannot_be_cancelled_is_refused() -> None:
    release = threading.Event()

    async def scenario() -> None:
        tasks = Tasks("x.log")
        task = tasks.start(Work("start", "ct1", lambda _: release.wait(60)), None)
        with pytest.raises(InvalidState):
            tasks.cancel(task.id)
        with pytest.raises(NotFound):
            tasks.cancel(4711)
        release.set()
        assert await task.outcome

    asyncio.run(scenario())


def test_known_errors_pass_and_defects_become_internal_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def known(_: Progress) -> None:
        raise NotRunning("ct1 is not running")

    def defect(_: Progress) -> None:
        raise KeyError("oops")

    async def scenario() -> None:
        tasks = Tasks("/log/vzd.log")
        with pytest.raises(NotRunning):
            await tasks.start(Work("stop", "ct1", known), None).outcome
        with pytest.raises(InternalError) as caught:
            await tasks.start(Work("stop", "ct1", defect), None).outcome
        assert "/log/vzd.log" in caught.value.hint

    with caplog.at_level(logging.INFO, "pyvz"):
        asyncio.run(scenario())
    lines = [record.getMessage() for record in caplog.records if record.name == "pyvz.operation"]
    assert "verb=stop" in lines[0]
    assert "result=NotRunning" in lines[0]
    assert 'message="ct1 is not running"' in lines[0]
    assert "result=InternalError" in lines[1]
    assert any(record.exc_info for record in caplog.records)


def test_drain_cancels_waits_and_reports_what_is_left() -> None:
    release = threading.Event()

    begun = threading.Barrier(3)

    def cancellable(progress: Progress) -> None:
        begun.wait(60)
        while True:
            progress.check()
            time.sleep(0.002)

    def stubborn(_: Progress) -> bool:
        begun.wait(60)
        return release.wait(60)

    async def scenario() -> None:
        tasks = Tasks("x.log")
        tasks.start(Work("create", "a", cancellable, cancellable=True), None)
        tasks.start(Work("stop", "b", stubborn), None)
        begun.wait(60)
        left = await tasks.drain(0.1)
        while len(left) > 1:  # on a busy machine
            left = await tasks.drain(0.1)
        assert [task.work.ref for task in left] == ["b"]
        with pytest.raises(InvalidState, match="shutting down"):
            tasks.start(Work("start", "c", lambda _: None), None)
        release.set()

    asyncio.run(scenario())


def test_abandoned_failures_are_silent() -> None:
    """A client that left is not told, and asyncio does not complain about it."""

    def fails(_: Progress) -> None:
        raise NotRunning("x")

    async def scenario() -> None:
        task = Tasks("x.log").start(Work("stop", "a", fails), None)
        await asyncio.wait([task.outcome], timeout=60)
        assert task.outcome.done()

    asyncio.run(scenario())
