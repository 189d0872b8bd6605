"""Guests that are asked for their addresses: all at once, and only those that can answer."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from pyvz.model.environment import Kind
from pyvz.model.status import Status
from pyvz.operations import fields, machineaddresses


def source(name: str, kind: Kind, status: Status) -> Any:
    made = fields.Source.__new__(fields.Source)
    made.node, made.env = None, SimpleNamespace(name=name, kind=kind)  # type: ignore[assignment]
    made.status = status
    return made


def test_all_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(5, timeout=60)

    def inside(node: object, env: Any) -> list[str]:
        together.wait()
        return [env.name]

    monkeypatch.setattr(machineaddresses, "inside", inside)
    running = [source(f"vm{number}", Kind.VM, Status.RUNNING) for number in range(5)]
    others = [source("vm", Kind.VM, Status.STOPPED), source("ct", Kind.CT, Status.RUNNING)]
    fields.hear([*running, *others])
    assert [each.told for each in running] == [[each.env.name] for each in running]
    assert [each.told for each in others] == [[], []]


def test_one_is_asked_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(machineaddresses, "inside", lambda _, env: asked.append(env.name) or ["a"])
    one = source("vm", Kind.VM, Status.RUNNING)
    fields.hear([one])
    assert asked == []
    assert (one.told, one.told, asked) == (["a"], ["a"], ["vm"])
