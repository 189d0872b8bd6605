"""Rate and time left in the progress that is printed as JSON."""

from __future__ import annotations

from pyvz.cli.rate import Rate


def test_rate_and_time_left() -> None:
    now = 100.0
    rate = Rate(lambda: now)
    told = rate.told({"stage": "a", "done": None, "total": None, "unit": ""})
    assert (told["rate"], told["left"]) == (None, None)
    assert rate.told({"stage": "a", "done": 0, "total": 1000})["rate"] is None
    now = 102.0
    told = rate.told({"stage": "a", "done": 200, "total": 1000, "unit": "B"})
    assert told == {
        "stage": "a", "done": 200, "total": 1000, "unit": "B", "rate": 100, "left": 8.0
    }  # fmt: skip
    now = 112.0  # what was long ago does not count
    assert rate.told({"stage": "a", "done": 800, "total": 1000})["rate"] == 60
    told = rate.told({"stage": "b", "done": 5, "total": None})
    assert (told["rate"], told["left"]) == (None, None)
    now = 113.0
    told = rate.told({"stage": "b", "done": 6, "total": None})
    assert (told["rate"], told["left"]) == (1, None)
