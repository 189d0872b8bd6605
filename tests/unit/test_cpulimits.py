"""CPUs of containers on this node: which ones, how many MHz, bursts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvz.linux import processors
from pyvz.linux.cgroup_limits import v1_cpu, with_burst
from pyvz.model.config import Config
from pyvz.model.config_limits import limits_of
from pyvz.model.limits import Limits
from pyvz.operations.cpulimits import choose

EIGHT = frozenset(range(8))
NUMA = (frozenset(range(4)), frozenset(range(4, 8)))


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3,5", {0, 1, 2, 3, 5}), ("", set()), ("7", {7}), ("2,0", {0, 2})]
)
def test_lists_of_processors(text: str, numbers: set[int]) -> None:
    assert processors.parse(text) == numbers
    assert processors.parse(processors.render(numbers)) == numbers


def test_the_least_loaded_are_chosen() -> None:
    load = {0: 3.0, 1: 1.0, 2: 0.0, 3: 2.0}
    assert choose(2, frozenset(range(4)), frozenset(), load=load) == {1, 2}


def test_who_has_its_number_keeps_its_place() -> None:
    assert choose(2, EIGHT, frozenset({0, 5}), load=dict.fromkeys((0, 5), 9.0)) == {0, 5}


def test_one_more_is_added_to_those_there() -> None:
    load = {0: 1.0, 1: 5.0}
    assert choose(3, EIGHT, frozenset({0, 1}), load=load, places=NUMA) == {0, 1, 2}


def test_all_are_of_one_numa_node_where_that_is_possible() -> None:
    load = dict.fromkeys(range(3), 1.0)
    assert choose(3, EIGHT, frozenset(), load=load, places=NUMA) == {4, 5, 6}
    assert len(choose(6, EIGHT, frozenset(), load=load, places=NUMA)) == 6


def test_only_allowed_ones_are_chosen() -> None:
    assert choose(1, frozenset({6, 7}), frozenset({0}), load={6: 1.0}) == {7}


def config(**values: str) -> Config:
    return Config.parse(values, "test")


def test_mhz_are_a_share_of_one_processor() -> None:
    limits = limits_of(config(CPULIMIT_MHZ="1000"), cpus=4, mhz=2000.0)
    assert limits.cpu_percent == 50


def test_speed_of_the_node(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("3600000\n")
    assert processors.mhz(str(tmp_path / "f")) == 3600.0
    (tmp_path / "info").write_text("cpu MHz\t\t: 2445.4\nmodel name: x\ncpu MHz : 2600.0\n")
    assert processors.mhz(str(tmp_path / "none"), str(tmp_path / "info")) == 2600.0
    assert processors.mhz(str(tmp_path / "none"), str(tmp_path / "none")) == 0.0


def test_a_burst_is_what_is_above_the_limit_and_at_most_as_much() -> None:
    def burst(**values: str) -> int | None:
        return limits_of(config(**values), cpus=8).cpu_burst

    assert burst(CPULIMIT="100", BURST_CPULIMIT="150") == 50
    assert burst(CPULIMIT="100", BURST_CPULIMIT="400") == 100
    assert burst(CPULIMIT="100", BURST_CPULIMIT="50") == 0
    assert burst(BURST_CPULIMIT="150") == 0


def test_a_burst_is_never_above_its_quota_not_even_between_two_writes() -> None:
    limits = Limits(cpu_percent=50, cpu_burst=25)
    files = [(w.file, w.text) for w in with_burst(v1_cpu(limits), limits, "burst")]
    assert files[0] == ("burst", "0")
    assert files[-1] == ("burst", "25000")
    assert ("cpu.cfs_quota_us", "50000") in files
