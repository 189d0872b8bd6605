"""Journals survive a crash at any byte."""

from __future__ import annotations

import pytest

from pyvz.errors import InternalError
from pyvz.store.journal import Journal
from pyvz.store.paths import Paths

UUID = "6f1d7a52-51d4-4f0b-9c5e-9d0c1f2a7b10"


def test_an_operation_that_ends_leaves_nothing(paths: Paths) -> None:
    with Journal.begin(paths, UUID, "start", {"force": True}) as journal:
        journal.note("mounted", {"root": "/x"})
        record = Journal.leftover(paths, UUID)
        assert record is not None
        assert (record.uuid, record.verb, record.data) == (UUID, "start", {"force": True})
        assert [step.name for step in record.steps] == ["mounted"]
    assert Journal.leftover(paths, UUID) is None
    assert Journal.all(paths) == []
    journal.done()


def test_one_that_fails_leaves_its_journal(paths: Paths) -> None:
    def fail() -> None:
        with Journal.begin(paths, UUID, "start") as journal:
            journal.note("a")
            journal.note("b", {"n": 1})
            journal.note("b", {"n": 2})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    (record,) = Journal.all(paths)
    step = record.step("b")
    assert step is not None
    assert step.data == {"n": 2}
    assert record.step("c") is None
    assert record.began <= step.at
    with pytest.raises(InternalError, match="not repaired"):
        Journal.begin(paths, UUID, "stop")
    Journal.forget(paths, UUID)
    Journal.forget(paths, UUID)
    Journal.begin(paths, UUID, "stop").done()


def test_torn_at_every_byte(paths: Paths) -> None:
    journal = Journal.begin(paths, UUID, "create", {"name": "x"})
    journal.note("one")
    journal.note("two")
    journal.leave()
    path = paths.lib / "journal" / f"{UUID}.jsonl"
    whole = path.read_bytes()
    seen = set()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        record = Journal.leftover(paths, UUID)
        complete = whole[:length].count(b"\n")
        assert (record is None) == (complete == 0)
        assert path.exists() == (complete > 0)
        if record is not None:
            assert len(record.steps) == complete - 1
        seen.add(complete)
    assert seen == {0, 1, 2, 3}


def test_all_in_order_of_time(paths: Paths) -> None:
    uuids = [UUID[:-1] + digit for digit in "210"]
    for uuid in uuids:
        Journal.begin(paths, uuid, "start").leave()
    (paths.lib / "journal" / "notes.jsonl").write_text("x\n")
    assert [record.uuid for record in Journal.all(paths)] == uuids
