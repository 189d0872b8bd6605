"""What a guest says of its memory, and how much the balloon may take then."""

from __future__ import annotations

import resource
from typing import Any, cast

import pytest

from pyvz.errors import NotEnoughResources
from pyvz.linux import capability
from pyvz.operations.machinememory import MARGIN, needed
from pyvz.units import MIB
from pyvz.vm import balloon, memorylock
from pyvz.vm.balloon import Told
from pyvz.vm.monitor import Monitor


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (Told(1024 * MIB), 1024 * MIB),  # silent: it keeps all
        (Told(1024 * MIB, 1000 * MIB, available=10 * MIB, updated=1), 1024 * MIB),
        (Told(1024 * MIB, 1000 * MIB, available=500 * MIB, updated=1), 524 * MIB + MARGIN),
        (Told(4096 * MIB, 4096 * MIB, available=3000 * MIB, updated=1), 1096 * MIB + 256 * MIB),
    ],
)
def test_what_a_guest_needs(told: Told, wanted: int) -> None:
    assert needed(told) == wanted


class Answers:
    """A monitor's answers, as a hostile guest can make them."""

    def __init__(self, stats: object) -> None:
        self.stats = stats

    def execute(self, command: str, *_: object, **__: object) -> Any:
        if command == "query-balloon":
            return {"actual": 1024}
        return self.stats if command == "qom-get" else {}


@pytest.mark.parametrize(
    "stats",
    [
        {"last-update": 0, "stats": {}},
        {"last-update": 7, "stats": {"stat-available-memory": 2**64 - 1}},
        {"last-update": 7, "stats": None},
        {"last-update": 7, "stats": {"stat-available-memory": "much"}},
        None,
    ],
)
def test_nonsense_counts_as_silence(stats: object) -> None:
    if stats is None:
        stats = {}
    assert balloon.told(cast("Monitor", Answers(stats))).available == 0


@pytest.mark.parametrize(
    ("hard", "capable", "wanted"),
    [
        (8 * MIB, True, resource.RLIM_INFINITY),
        (resource.RLIM_INFINITY, False, resource.RLIM_INFINITY),
        (64 * MIB + memorylock.ROOM, False, 64 * MIB + memorylock.ROOM),
        (63 * MIB + memorylock.ROOM, False, None),
    ],
)
def test_how_much_may_be_locked(
    monkeypatch: pytest.MonkeyPatch, hard: int, capable: bool, wanted: int | None
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, hard))
    monkeypatch.setattr(capability, "has", lambda _: capable)
    if wanted is not None:
        assert memorylock.limit(64 * MIB) == wanted
        return
    with pytest.raises(NotEnoughResources, match=r"1088 MiB .* allows 1087 MiB"):
        memorylock.limit(64 * MIB)
