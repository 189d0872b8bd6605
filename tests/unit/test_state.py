"""Run state is a hint: written whole, ignored when it cannot be understood."""

from __future__ import annotations

import pytest

from pyvz.model.status import Status
from pyvz.store.paths import Paths
from pyvz.store.state import RunState

UUID = "6f1d7a52-51d4-4f0b-9c5e-9d0c1f2a7b10"


def test_round_trip(paths: Paths) -> None:
    assert RunState.load(paths, UUID) is None
    assert RunState.all(paths) == {}
    state = RunState("boot", 5, 77, Status.RUNNING, 12.5, {"root": "/x", "ids": [1, 2]})
    state.save(paths, UUID)
    assert RunState.load(paths, UUID) == state
    assert RunState.all(paths) == {UUID: state}
    state._replace(status=Status.PAUSED).save(paths, UUID)
    assert RunState.load(paths, UUID) == state._replace(status=Status.PAUSED)
    RunState.clear(paths, UUID)
    RunState.clear(paths, UUID)
    assert RunState.load(paths, UUID) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"boot_id": "x", "pid": "y"}', "null", "\xff"]
)
def test_garbage_counts_as_absent(
    paths: Paths, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    RunState("boot", 5, 77, Status.RUNNING).save(paths, UUID)
    (paths.run / "state" / f"{UUID}.json").write_text(text, encoding="latin-1")
    assert RunState.load(paths, UUID) is None
    assert UUID in caplog.text
    assert RunState.all(paths) == {}
