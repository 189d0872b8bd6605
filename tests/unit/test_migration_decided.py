"""The giving side around the decision: what has gone never goes on here, whatever fails then."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvz.errors import ConnectionBroken, InDoubt, MigrationError, NoSpace
from pyvz.migration.request import Request
from pyvz.model.status import Status
from pyvz.model.task import NoProgress
from pyvz.operations import departure
from pyvz.operations.giving import Giving
from pyvz.store.journal import Journal
from pyvz.store.paths import Paths

UUID = "0c0ffee0-0000-4000-8000-000000000001"


class Asked:
    """The other node: what it answers to each question, or raises."""

    def __init__(self, **answers: dict[str, Any] | BaseException) -> None:
        self.answers = answers
        self.address = SimpleNamespace(host="")  # it cannot be called anew

    def call(self, kind: str, **_: object) -> dict[str, Any]:
        found = self.answers[kind]
        if isinstance(found, BaseException):
            raise found
        return found


class Case(Giving):
    """A migration at its decision."""

    def __init__(self, root: Path, **answers: dict[str, Any] | BaseException) -> None:
        node: Any = SimpleNamespace(paths=Paths(root), status=lambda _env: Status.RUNNING)
        env: Any = SimpleNamespace(uuid=UUID, name="ct")
        peer: Any = Asked(**answers)
        super().__init__(node, env, peer, Request("n"), NoProgress())
        self.offer: Any = SimpleNamespace(live=True)
        data = {"id": UUID, "to": ""}
        self._journal = self.record = Journal.begin(node.paths, UUID, departure.VERB, data)
        self.undone = False

    def _back(self, error: BaseException) -> None:
        del error
        self.undone = True

    def steps(self) -> list[str]:
        """What was noted."""
        found = Journal.leftover(self.node.paths, UUID)
        assert found is not None
        return [step.name for step in found.steps]


def decided(case: Case) -> dict[str, Any]:
    """Have it decided; what is raised undoes it, or it has gone."""
    try:
        return case._decide(case.record)
    except BaseException as error:
        case._gone_though(error)
        raise


def test_taken(tmp_path: Path) -> None:
    case = Case(tmp_path, commit={"started": True})
    assert decided(case) == {"started": True}
    assert case.steps() == [departure.GIVEN]
    assert case._gone_though(OSError("a thread could not be ended"))
    assert not case.undone


def test_taken_with_a_full_disk_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be noted is asked for again after a death; it must not go on here."""
    case = Case(tmp_path, commit={"started": True})
    monkeypatch.setattr(case.record, "note", lambda _: _raise(NoSpace("full")))
    assert decided(case) == {"started": True}
    assert case._gone_though(NoSpace("full"))
    assert not case.undone


def test_refused(tmp_path: Path) -> None:
    case = Case(tmp_path, commit=MigrationError("no"), outcome={"outcome": "refused"})
    with pytest.raises(MigrationError, match="no"):
        decided(case)
    assert case.undone
    assert case.steps() == [departure.KEPT]


def test_taken_though_the_answer_was_lost(tmp_path: Path) -> None:
    case = Case(tmp_path, commit=MigrationError("late"), outcome={"outcome": "taken"})
    assert decided(case) == {"started": False, "problem": "late"}
    assert case.steps() == [departure.GIVEN]


def test_in_doubt(tmp_path: Path) -> None:
    """Neither forward nor back; also when letting go of something fails in that moment."""
    case = Case(tmp_path, commit=ConnectionBroken("cut"), outcome=ConnectionBroken("cut"))
    with pytest.raises(InDoubt):
        decided(case)
    assert not case._gone_though(OSError("a thread could not be ended"))
    assert not case.undone
    assert case.steps() == []


def test_a_node_that_cannot_be_asked_leaves_it_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason, a full /tmp here too."""
    case = Case(tmp_path, commit={})
    record = Journal.leftover(case.node.paths, UUID)
    assert record is not None
    monkeypatch.setattr(departure, "dial", lambda *_, **__: _raise(OSError("no space left")))
    monkeypatch.setattr("pyvz.operations.home.owner_id", lambda _: "me")
    with pytest.raises(InDoubt):
        departure.ask(case.node, record._replace(data={"id": UUID, "to": "other"}))


def _raise(error: BaseException) -> None:
    raise error
