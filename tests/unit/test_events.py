"""The event bus: history, replay, the file, slow subscribers."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from pyvz.daemon import events as events_module
from pyvz.daemon.events import HISTORY, QUEUE, Bus
from pyvz.model.event import Event


def _event(number: int) -> Event:
    return Event(float(number), "ve-start", f"uuid-{number}", {"name": f"ct{number}"})


def test_history_survives_the_daemon(tmp_path: Path) -> None:
    bus = Bus(tmp_path / "events.log")
    for number in range(5):
        bus.publish(_event(number))
    (tmp_path / "events.log").open("a").write('{"time": 5, "na')  # cut short by a crash
    again = Bus(tmp_path / "events.log")
    assert [event.uuid for event in again.history()] == [f"uuid-{number}" for number in range(5)]
    assert again.history()[0] == _event(0)


def test_history_is_bounded(tmp_path: Path) -> None:
    bus = Bus(tmp_path / "events.log")
    for number in range(HISTORY + 10):
        bus.publish(_event(number))
    assert len(bus.history()) == HISTORY
    assert bus.history()[0].uuid == "uuid-10"


def test_file_is_rotated_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MAX_FILE", 1000)
    bus = Bus(tmp_path / "events.log")
    for number in range(100):
        bus.publish(_event(number))
    assert (tmp_path / "events.log.1").stat().st_size < 1200
    # What was in both files is replayed.
    assert Bus(tmp_path / "events.log").history()[-1].uuid == "uuid-99"
    for line in (tmp_path / "events.log.1").read_text().splitlines():
        assert json.loads(line)["name"] == "ve-start"


def test_unwritable_file_loses_no_event(tmp_path: Path) -> None:
    bus = Bus(tmp_path / "missing" / "events.log")
    bus.publish(_event(1))
    assert len(bus.history()) == 1


def test_subscribers_get_each_event_once_from_many_threads(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        bus = Bus(tmp_path / "events.log")
        bus.attach(asyncio.get_running_loop())
        bus.publish(_event(0))
        threads = [
            threading.Thread(
                target=lambda base: [bus.publish(_event(base + each)) for each in range(50)],
                args=(100 * number,),
            )
            for number in range(1, 5)
        ]
        for thread in threads:
            thread.start()
        subscription = bus.subscribe(replay=True)  # while they publish
        found = [(await subscription.next()).uuid for _ in range(201)]
        for thread in threads:
            thread.join()
        await asyncio.sleep(0)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(subscription.next(), 0.05)
        bus.unsubscribe(subscription)
        return found

    found = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert len(found) == len(set(found)) == 201
    assert found[0] == "uuid-0"


def test_without_replay_only_what_comes(tmp_path: Path) -> None:
    async def scenario() -> str:
        bus = Bus(tmp_path / "events.log")
        bus.attach(asyncio.get_running_loop())
        bus.publish(_event(1))
        subscription = bus.subscribe(replay=False)
        bus.publish(_event(2))
        return (await subscription.next()).uuid

    assert asyncio.run(scenario()) == "uuid-2"


def test_slow_subscriber_loses_the_oldest_and_is_told(tmp_path: Path) -> None:
    async def scenario() -> list[Event]:
        bus = Bus(tmp_path / "events.log")
        bus.attach(asyncio.get_running_loop())
        subscription = bus.subscribe(replay=False)
        for number in range(HISTORY + QUEUE + 7):
            bus.publish(_event(number))
        await asyncio.sleep(0.05)
        return [await subscription.next(), await subscription.next()]

    marker, first = asyncio.run(scenario())
    assert (marker.name, marker.data) == ("lost", {"count": 7})
    assert first.uuid == "uuid-7"
