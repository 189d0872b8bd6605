"""KSM with real containers: who takes part, what is saved, and that all is put back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from engine import Engine, engine, wait_for
from fakenode import engine_node
from pyvz.linux.ksm import Ksm, savings
from pyvz.model.limits import Limits
from pyvz.operations.samepage import Samepage

__all__ = ["engine"]
pytestmark = pytest.mark.requires("ksm")
# Pages of equal content in memory of its own: a shell variable of 8 MB.
HOARDER = (
    "/bin/sh", "-c",
    "x=0123456789abcdef; i=0; while test $i -lt 19; do x=$x$x; i=$((i+1)); done; "
    "trap 'exit 3' TERM; while :; do sleep 0.05; done",
)  # fmt: skip


@pytest.fixture
def kernel() -> Iterator[Ksm]:
    """The machine's KSM, as it was before in any case."""
    made = Ksm()
    before = made.knobs()
    yield made
    made.turn(before)


def test_equal_pages_are_merged_and_all_is_put_back(engine: Engine, kernel: Ksm) -> None:
    before = kernel.knobs()
    names = []
    for merge in (True, True, False):
        spec = engine.spec()._replace(argv=HOARDER, merge=merge, limits=Limits(memory=128 << 20))
        engine.start(spec)
        names.append(spec.uuid)
    tuning = Samepage(engine_node(engine), kernel)
    tuning.look()
    assert tuning.active
    assert kernel.knobs().run == 1

    def merged(name: str) -> int:
        return savings(engine.cgroups.pids(name)).merged

    end = time.monotonic() + 150
    while min(map(merged, names[:2])) < 8 << 20 and time.monotonic() < end:
        time.sleep(0.5)
        tuning.look()
    assert min(map(merged, names[:2])) >= 8 << 20
    assert merged(names[2]) == 0

    session = engine.run(names[0], "cat", "/proc/self/ksm_stat")
    if "ksm_merge_any" in session.out:
        assert "ksm_merge_any: yes" in session.out  # a session takes part as well

    another = Samepage(engine_node(engine), kernel)
    another.look()
    assert not another.active  # one for the machine
    for name in names:
        engine.runtime.kill(name)
        engine.runtime.clean(name)
    tuning.look()
    assert not tuning.active
    assert kernel.knobs() == before


def test_who_turns_the_knobs_himself_is_left_alone(engine: Engine, kernel: Ksm) -> None:
    before = kernel.knobs()
    spec = engine.spec()._replace(merge=True)
    engine.start(spec)
    tuning = Samepage(engine_node(engine), kernel)
    tuning.look()
    mine = kernel.knobs()._replace(pages=777)
    kernel.turn(mine)
    tuning.look()
    tuning.look()
    assert kernel.knobs() == mine
    kernel.turn(before)
    engine.runtime.kill(spec.uuid)
    wait_for(lambda: not engine.runtime.running())
    tuning.close()
    assert kernel.knobs() == before


def test_a_killed_vzd_leaves_what_its_successor_puts_back(engine: Engine, kernel: Ksm) -> None:
    before = kernel.knobs()
    spec = engine.spec()._replace(merge=True)
    engine.start(spec)
    node = engine_node(engine)
    killed = Samepage(node, kernel)
    killed.look()
    os.close(killed._lock)
    engine.runtime.kill(spec.uuid)
    Samepage(node, kernel).look()
    assert kernel.knobs() == before
