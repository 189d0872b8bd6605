"""Config and the limits it means."""

from __future__ import annotations

import time

import pytest

from pyvz.errors import ConfigError
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config, inheritable
from pyvz.model.config_limits import limits_of
from pyvz.model.grammar import Pair
from pyvz.units import GIB, MIB, UNLIMITED

TYPICAL = {
    "VERSION": "2",
    "UUID": "6f1d7a52-51d4-4f0b-9c5e-9d0c1f2a7b10",
    "NAME": "web",
    "PHYSPAGES": "65536:65536",
    "SWAPPAGES": "0:65536",
    "CPUUNITS": "2000",
    "CPULIMIT": "150",
    "CPUS": "2",
    "CPUMASK": "0-3",
    "NUMPROC": "1000:1000",
    "IOLIMIT": "10485760",
    "IP_ADDRESS": "10.0.0.2/255.255.255.0",
    "SOMETHING_NEW": "1",
}


def test_sections_are_typed_views() -> None:
    config = Config.parse(TYPICAL)
    assert config.cpu.units == 2000
    assert config.memory.physpages == Pair(65536, 65536)
    assert config.boot.onboot == "no"
    assert config.boot.order is None
    assert config.unknown == {"SOMETHING_NEW": "1"}
    assert not config.is_set("boot.onboot")


def test_bad_values_name_source_and_key() -> None:
    with pytest.raises(ConfigError, match=r"ve\.conf: CPUUNITS: .*'many'"):
        Config.parse({"CPUUNITS": "many"}, "ve.conf")
    config = Config.parse({"CPUUNITS": "many", "CPUS": "2"}, "ve.conf", lenient=True)
    assert (config.cpu.units, config.cpu.cpus, len(config.problems)) == (1000, 2, 1)


def test_what_vz_conf_gives_counts_but_is_not_stored() -> None:
    shared = inheritable({"ONBOOT": "yes", "NAME": "x", "IP_ADDRESS": "bad", "LOCKDIR": "/l"})
    assert shared == {"boot.onboot": "yes"}
    config = Config.parse({"CPUS": "1"}, inherited=shared)
    assert config.boot.onboot == "yes"
    assert config.text() == {"CPUS": "1"}
    assert Config.parse({"ONBOOT": "no"}, inherited=shared).boot.onboot == "no"


def test_the_main_key_wins_over_its_alias() -> None:
    assert Config.parse({"IOPS": "5", "IOPSLIMIT": "6"}).io.operations == 6
    assert Config.parse({"IOPSLIMIT": "6", "IOPS": "5"}).io.operations == 6


def test_differences_go_into_the_file() -> None:
    conf = ConfFile.parse('# c\nCPUUNITS="1000"\nIOPS="5"\nKEEP=me\nCPULIMIT=5\n')
    old = Config.parse(conf.values())
    new = old.changed({"cpu.units": 8, "io.operations": 7, "cpu.limit_mhz": 100, "cpu.cpus": 2})
    for key, text in new.differences(old).items():
        conf.set(key, text)
    assert Config.parse(conf.values()) == new
    assert conf.get("KEEP") == "me"
    assert "IOPS" not in conf.values()
    assert "CPULIMIT" not in conf.values()
    assert new.differences(new) == {}
    assert new.changed({"cpu.cpus": None}).text().get("CPUS") is None


def test_equality_and_hash() -> None:
    assert Config.parse(TYPICAL) == Config.parse(dict(reversed(TYPICAL.items())))
    assert hash(Config.parse(TYPICAL)) == hash(Config.parse(TYPICAL))


def limits(cpus: int = 4, mhz: float = 0.0, **values: str):
    return limits_of(Config.parse(values), cpus=cpus, mhz=mhz)


def test_typical_limits() -> None:
    found = limits_of(Config.parse(TYPICAL), cpus=8)
    assert (found.memory, found.swap) == (256 * MIB, 256 * MIB)
    assert (found.cpu_weight, found.cpu_percent, found.cpus, found.mems) == (2000, 150, "0-3", "")
    assert (found.pids, found.io_weight, found.io_bps, found.io_iops) == (1000, 4, 10485760, 0)


def test_no_configuration_means_no_limit() -> None:
    found = limits()
    assert (found.memory, found.swap, found.pids) == (UNLIMITED, UNLIMITED, UNLIMITED)
    assert (found.cpu_weight, found.cpu_percent) == (1000, 0)


@pytest.mark.parametrize(
    ("values", "percent"),
    [
        ({"CPULIMIT": "50"}, 50),
        ({"CPULIMIT": "5000"}, 400),
        ({"CPUS": "2"}, 200),
        ({"CPUS": "2", "CPULIMIT": "300"}, 200),
        ({"CPUS": "2", "CPULIMIT": "50"}, 50),
        ({"CPUS": "9"}, 0),
        ({"CPULIMIT_MHZ": "1000"}, 50),
    ],
)
def test_cpu_limits(values: dict[str, str], percent: int) -> None:
    assert limits(cpus=4, mhz=2000.0, **values).cpu_percent == percent


def test_memory_modes() -> None:
    # VSwap: the limit counts.
    assert limits(PHYSPAGES="0:262144", SWAPPAGES="0:0")[:2] == (GIB, 0)
    assert limits(PHYSPAGES="0:unlimited", SWAPPAGES="0:unlimited")[:2] == (UNLIMITED, UNLIMITED)
    # Memory alone: no swap.
    assert limits(PHYSPAGES="262144")[:2] == (GIB, 0)
    # User beancounters only: the barrier of PRIVVMPAGES is the memory.
    assert limits(PRIVVMPAGES="65536:69632", KMEMSIZE="1:2")[:2] == (256 * MIB, 0)
    assert limits(PHYSPAGES="0:unlimited", PRIVVMPAGES="65536:69632").memory == 256 * MIB


def test_old_weights() -> None:
    assert limits(CPUWEIGHT="500").cpu_weight == 500
    assert limits(CPUUWEIGHT="500", CPUUNITS="9").cpu_weight == 9


def test_reading_is_fast() -> None:
    """A `list` of 200 has tens of milliseconds; 40 lines take far less than 1 ms (3 ms here)."""
    text = "".join(f'{key}="{value}"\n' for key, value in TYPICAL.items())
    text += "".join(f'KEY{n}="value"\n# comment\n' for n in range(14))
    best = min(_timed(text) for _ in range(20))
    assert best < 0.003


def _timed(text: str) -> float:
    begin = time.thread_time()
    Config.parse(ConfFile.parse(text).values())
    return time.thread_time() - begin
