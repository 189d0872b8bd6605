"""How hard KSM works, by what it saves: the controller, and the knobs it turns."""

from __future__ import annotations

from pathlib import Path

from pyvz.linux.ksm import Counters, Knobs, Ksm
from pyvz.memory import samepage
from pyvz.memory.samepage import Controller
from pyvz.units import MIB


def counters(saved: int = 0, scans: int = 0, cpu: float = 0.0) -> Counters:
    return Counters(saved * MIB, scans, cpu)


def test_what_pays_is_done_faster() -> None:
    controller = Controller()
    pages = [controller.step(0.0, counters()).knobs.pages]
    for turn in range(1, 12):
        seen = counters(saved=100 * turn, cpu=0.1 * turn, scans=9)
        verdict = controller.step(turn * 10.0, seen)
        assert verdict.knobs.run == 1
        pages.append(verdict.knobs.pages)
    assert pages[:4] == [100, 200, 400, 800]
    assert pages[-1] == samepage.FASTEST


def test_the_first_passes_are_not_judged_and_hurry() -> None:
    controller = Controller()
    controller.step(0.0, counters())
    pages = [
        controller.step(turn * 10.0, counters(cpu=0.1 * turn)).knobs.pages for turn in range(1, 6)
    ]
    assert pages == [200, 400, 800, 1600, 3200]
    assert not controller.resting


def test_it_never_takes_more_than_its_share_of_a_cpu() -> None:
    controller = Controller()
    controller.step(0.0, counters())
    fast = controller.step(10.0, counters(saved=1000, cpu=0.1, scans=5)).knobs.pages
    busy = counters(saved=9000, cpu=0.1 + 10 * samepage.SHARE + 1, scans=6)
    verdict = controller.step(20.0, busy)
    assert verdict.knobs.pages == fast // 2


def test_it_rests_when_two_passes_found_nothing_and_looks_again_later() -> None:
    controller = Controller()
    controller.step(0.0, counters())
    now, scans, cpu = 0.0, 0, 0.0
    while not controller.resting:
        now, scans, cpu = now + 10, scans + 1, cpu + 0.5
        verdict = controller.step(now, counters(scans=scans, cpu=cpu))
        assert now < 300
    assert verdict.knobs.run == 0  # what is merged stays merged
    assert controller.step(now + 10, counters(scans=scans, cpu=cpu)).knobs.run == 0
    later = now + samepage.REST + 1
    assert controller.step(later, counters(scans=scans, cpu=cpu)).knobs.run == 1


def test_a_new_container_ends_the_rest() -> None:
    controller = Controller()
    for turn in range(30):
        controller.step(turn * 10.0, counters(scans=turn, cpu=turn * 1.0))
    assert controller.resting
    controller.news()
    assert controller.step(300.0, counters(scans=29, cpu=29.0)).knobs.run == 1


def test_knobs_are_read_and_turned(tmp_path: Path) -> None:
    values = {"run": 0, "pages_to_scan": 100, "sleep_millisecs": 20, "full_scans": 3}
    values["general_profit"] = 4096
    for name, value in values.items():
        (tmp_path / name).write_text(f"{value}\n")
    kernel = Ksm(str(tmp_path))
    assert kernel.knobs() == Knobs(0, 100, 20)
    kernel.turn(Knobs(1, 400, 50))
    assert kernel.knobs() == Knobs(1, 400, 50)
    found = kernel.counters()
    assert (found.saved, found.scans) == (4096, 3)
    assert not kernel.advised()
    (tmp_path / "advisor_mode").write_text("none [scan-time]\n")
    assert kernel.advised()
