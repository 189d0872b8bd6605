"""Parameters of CPU and I/O (config.md sections 3.2 and 3.4)."""

from __future__ import annotations

import re

from pyvz.errors import BadValue
from pyvz.model.grammar import CpuList, Integer
from pyvz.model.param import Option, Param, both, tools
from pyvz.units import MIB, UNLIMITED, parse_size

_MHZ = re.compile(r"(\d{1,9})\s*m(?:hz)?", re.IGNORECASE)
_CPU_COUNT = Integer(0, 8192)
_WEIGHT_HELP = "share of CPU time against other environments, 8 to 500000 (default 1000)"


def _limit_field(text: str) -> str:
    return "cpu.limit_mhz" if _MHZ.fullmatch(text.strip()) else "cpu.limit"


def _limit(text: str) -> int:
    """Read ``N``, ``N%`` or ``Nm``/``Nmhz``."""
    word = text.strip()
    if match := _MHZ.fullmatch(word):
        return int(match[1])
    if word.lower() == "unlimited":
        return 0
    try:
        return Integer(0, 1000000).parse(word.removesuffix("%"))
    except BadValue as error:
        raise BadValue(
            f"'{text}' is not a CPU limit: give N or N% of one CPU, or Nmhz; 0 means none"
        ) from error


def _cpus(text: str) -> int:
    word = text.strip().lower()
    return 0 if word in {"unlimited", "all"} else _CPU_COUNT.parse(word)


def _rate(default_unit: int) -> Option:
    """Return --iolimit of one tool: bytes per second, 0 for none."""

    def parse(text: str) -> int:
        size = parse_size(text, default_unit=default_unit)
        return 0 if size >= UNLIMITED else size

    unit = "MiB/s" if default_unit == MIB else "bytes/s"
    about = f"limit of disk traffic in {unit} or with a suffix B K M G; 0: none"
    return Option("iolimit", "N[BKMG]", about, parse=parse)


_LIMIT_OPTION = Option(
    "cpulimit",
    "N[%]|Nmhz",
    "limit of CPU time in percent of one CPU (200: two CPUs) or in MHz; 0: none",
    parse=_limit,
    route=_limit_field,
)
_IOPS = Option("iopslimit", "N", "limit of disk operations per second; 0: none")
_IOPRIO = Option("ioprio", "0..7", "priority of disk traffic, 7 is the highest (default 4)")

UNITS = Param(
    "cpu.units",
    "CPUUNITS",
    Integer(8, 500000),
    1000,
    "share of CPU time against other environments",
    both(Option("cpuunits", "N", _WEIGHT_HELP)),
    live=True,
    vzlist="cpuunits",
)
WEIGHT = Param(
    "cpu.weight",
    "CPUWEIGHT",
    Integer(0, 500000),
    help="old form of CPUUNITS",
    options=tools(vzctl=(Option("cpuweight", "N", "old form of --cpuunits"),)),
    aliases=("CPUUWEIGHT",),
    live=True,
)
LIMIT = Param(
    "cpu.limit",
    "CPULIMIT",
    Integer(0, 1000000),
    0,
    "limit of CPU time in percent of one CPU; 0: none",
    both(_LIMIT_OPTION),
    live=True,
    excludes="cpu.limit_mhz",
    vzlist="cpulimit",
)
LIMIT_MHZ = Param(
    "cpu.limit_mhz",
    "CPULIMIT_MHZ",
    Integer(0, 10**9),
    0,
    "limit of CPU time in MHz; 0: none",
    live=True,
    excludes="cpu.limit",
    vzlist="cpulimitM",
)
CPUS = Param(
    "cpu.cpus",
    "CPUS",
    _CPU_COUNT,
    0,
    "number of CPUs; 0: all",
    both(Option("cpus", "N", "number of CPUs; 0 or 'unlimited': all of the node", parse=_cpus)),
    live=True,
    vzlist="cpus",
)
MASK = Param(
    "cpu.mask",
    "CPUMASK",
    CpuList(auto=True),
    "",
    "CPUs of the node that may be used",
    both(Option("cpumask", "N,N-M|all|auto", "CPUs of the node that may be used")),
    live=True,
    vzlist="cpumask",
)
NODEMASK = Param(
    "cpu.nodemask",
    "NODEMASK",
    CpuList(),
    "",
    "NUMA nodes that may be used",
    both(Option("nodemask", "N,N-M|all", "NUMA nodes that may be used")),
    live=True,
    vzlist="nodemask",
)
BURST_LIMIT = Param(
    "cpu.burst_limit",
    "BURST_CPULIMIT",
    Integer(0, 1000000),
    help="limit of CPU time in a burst, from what was left unused before; 0: no bursts",
    options=tools(
        vzctl=(Option("burst_cpulimit", "PERCENT", "limit of CPU time in a burst; 0: none"),)
    ),
    live=True,
)
BURST_AVERAGE = Param(
    "cpu.burst_average",
    "BURST_CPU_AVG_USAGE",
    Integer(0, 1000000),
    help="average use up to which a burst is allowed",
    options=tools(
        vzctl=(
            Option(
                "burst_cpu_avg_usage",
                "PERCENT",
                "average use up to which a burst is allowed",
                ignored="the kernel lets bursts use what was left unused, whatever the average",
            ),
        )
    ),
    ignored="the kernel lets bursts use what was left unused, whatever the average",
)
IO_PRIORITY = Param(
    "io.priority",
    "IOPRIO",
    Integer(0, 7),
    4,
    "priority of disk traffic",
    both(_IOPRIO),
    live=True,
    vzlist="ioprio",
)
IO_LIMIT = Param(
    "io.limit",
    "IOLIMIT",
    Integer(0, UNLIMITED),
    0,
    "limit of disk traffic in bytes per second; 0: none",
    tools(prlctl=(_rate(MIB),), vzctl=(_rate(1),)),
    live=True,
    vzlist="iolimit",
)
IO_OPERATIONS = Param(
    "io.operations",
    "IOPSLIMIT",
    Integer(0, UNLIMITED),
    0,
    "limit of disk operations per second; 0: none",
    both(_IOPS),
    aliases=("IOPS",),
    live=True,
    vzlist="iopslimit",
)
