"""Parameters of memory and the old user beancounters (config.md section 3.3)."""

from __future__ import annotations

from pyvz.errors import BadValue
from pyvz.model.grammar import (
    BYTES,
    COUNT,
    PAGES,
    Amount,
    Amounts,
    Choice,
    Factor,
    Guarantee,
    Integer,
    Pair,
    YesNo,
)
from pyvz.model.grammar_list import MemInfo
from pyvz.model.param import CONTAINERS, Option, Param, both, tools
from pyvz.units import MIB, bytes_to_pages, parse_size

_DEAD = "user beancounters need the kernel of OpenVZ; use --memory, --swap and --numproc"
_DEPRECATED = "this parameter is deprecated since OpenVZ 7 and has no effect"
_Limits = Param[Pair]


def _memory(text: str, default_unit: int) -> Pair:
    pages = bytes_to_pages(parse_size(text, default_unit=default_unit, pages=True))
    if pages == 0:
        raise BadValue("the memory cannot be 0")
    return Pair(pages, pages)


def _memsize(text: str) -> Pair:
    return _memory(text, MIB)


def _ram(text: str) -> Pair:
    return _memory(text, 1)


def _swap(text: str) -> Pair:
    pages = bytes_to_pages(parse_size(text, default_unit=1, pages=True))
    return Pair(pages, pages)


_SIZES = {"pages": PAGES, "bytes": BYTES, "number": COUNT}
_SWAP = Option("swap", "SIZE", "swap in bytes or with a suffix", parse=_swap, kinds=CONTAINERS)
_PHYSPAGES = Option("physpages", "PAGES[:PAGES]", "memory in 4096-byte pages or with a suffix")
_SWAPPAGES = Option(
    "swappages",
    "PAGES[:PAGES]",
    "swap in 4096-byte pages or with a suffix",
    kinds=CONTAINERS,
)

PHYSPAGES = Param(
    "memory.physpages",
    "PHYSPAGES",
    PAGES,
    None,
    "memory in pages; the limit counts",
    tools(
        prlctl=(Option("memsize", "SIZE", "memory in MiB or with a suffix", parse=_memsize),),
        vzctl=(
            Option(
                "ram", "SIZE", "memory in bytes or with a suffix", parse=_ram, aliases=("memory",)
            ),
            _PHYSPAGES,
        ),
    ),
    live=True,
    vzlist="physpages",
)
SWAPPAGES = Param(
    "memory.swappages",
    "SWAPPAGES",
    PAGES,
    None,
    "swap in pages; the limit counts",
    both(_SWAP, _SWAPPAGES),
    live=True,
    vzlist="swappages",
)
OVERCOMMIT = Param(
    "memory.overcommit",
    "VM_OVERCOMMIT",
    Factor(),
    None,
    "allocations may be this many times memory and swap",
    tools(
        vzctl=(
            Option("vm_overcommit", "FACTOR", "allocations against memory and swap", ignored=_DEAD),
        )
    ),
    ignored=_DEAD,
)
GUARANTEE: Param[int | None] = Param(
    "memory.guarantee",
    "MEMGUARANTEE",
    Guarantee(),
    None,
    "guaranteed memory in percent; auto: the policy decides",
    both(Option("memguarantee", "auto|PERCENT", "guaranteed part of the memory, or 'auto'")),
    live=True,
    excludes="memory.guarantee_bytes",
)
GUARANTEE_BYTES = Param(
    "memory.guarantee_bytes",
    "MEMGUARANTEE_BYTES",
    Amount(1, "number of bytes"),
    None,
    "guaranteed memory in bytes",
    live=True,
    excludes="memory.guarantee",
)
CACHE_ISOLATION = Param(
    "memory.cache_isolation",
    "PAGECACHE_ISOLATION",
    YesNo(),
    default=False,
    help="keep evicted page cache out of the node's cache",
    options=tools(
        vzctl=(
            Option(
                "pagecache-isolation",
                "yes|no",
                "keep evicted page cache out of the node's cache",
                ignored="page cache isolation needs the kernel of OpenVZ",
            ),
        )
    ),
    ignored="page cache isolation needs the kernel of OpenVZ",
)
SUBGROUPS = Param(
    "memory.subgroups",
    "NUMMEMORYSUBGROUPS",
    Integer(0),
    None,
    "number of memory cgroups that the container may make",
    tools(vzctl=(Option("num-memory-subgroups", "N", "memory cgroups the container may make"),)),
    live=True,
)
MEMINFO = Param(
    "memory.meminfo",
    "MEMINFO",
    MemInfo(),
    None,
    "what /proc/meminfo shows (dead since OpenVZ 7)",
    tools(
        vzctl=(
            Option(
                "meminfo",
                "none|pages:N|privvmpages:N",
                "what /proc/meminfo shows",
                ignored=_DEPRECATED,
            ),
        )
    ),
    ignored=_DEPRECATED,
)
NUMPROC = Param(
    "memory.numproc",
    "NUMPROC",
    COUNT,
    None,
    "number of processes and threads",
    both(
        Option("numproc", "N[:N]", "number of processes and threads", short="p", kinds=CONTAINERS)
    ),
    live=True,
    vzlist="numproc",
)


def _counter(  # noqa: PLR0913  (a row of the table)
    name: str,
    unit: str,
    about: str,
    *,
    short: str = "",
    why: str = _DEAD,
    aliases: tuple[str, ...] = (),
    option: bool = True,
    column: bool = True,
) -> Param[Pair]:
    """Return the row of one user beancounter: read and kept, without effect of its own."""
    kind: Amounts = _SIZES[unit]
    metavar = f"{unit.upper()}[:{unit.upper()}]" if unit != "number" else "N[:N]"
    lower = tuple(alias.lower() for alias in aliases)
    given = Option(name.lower(), metavar, about, short=short, ignored=why, aliases=lower)
    return Param(
        f"memory.{name.lower()}",
        name,
        kind,
        None,
        about,
        tools(vzctl=(given,)) if option else {},
        aliases=aliases,
        vzlist=name.lower() if column else "",
        ignored=why,
    )


KMEMSIZE = _counter("KMEMSIZE", "bytes", "kernel memory", short="k")
LOCKEDPAGES = _counter("LOCKEDPAGES", "pages", "locked memory", short="l")
PRIVVMPAGES = _counter("PRIVVMPAGES", "pages", "allocated memory")
SHMPAGES = _counter("SHMPAGES", "pages", "shared memory")
VMGUARPAGES = _counter("VMGUARPAGES", "pages", "guaranteed allocations")
NUMFILE = _counter("NUMFILE", "number", "open files", short="n")
NUMFLOCK = _counter("NUMFLOCK", "number", "file locks", short="f")
NUMPTY = _counter("NUMPTY", "number", "pseudo-terminals", short="t")
NUMSIGINFO = _counter("NUMSIGINFO", "number", "queued signals", short="i")
NUMIPTENT = _counter(
    "NUMIPTENT", "number", "packet filter rules", short="e", aliases=("IPTENTRIES",)
)
AVNUMPROC = _counter("AVNUMPROC", "number", "average number of processes", column=False)
NUMNETIF = _counter("NUMNETIF", "number", "network interfaces", column=False)

BEANCOUNTERS: tuple[_Limits, ...] = (
    KMEMSIZE,
    LOCKEDPAGES,
    PRIVVMPAGES,
    SHMPAGES,
    VMGUARPAGES,
    NUMFILE,
    NUMFLOCK,
    NUMPTY,
    NUMSIGINFO,
    NUMIPTENT,
    AVNUMPROC,
    NUMNETIF,
)
DEPRECATED: tuple[_Limits, ...] = (
    _counter("OOMGUARPAGES", "pages", "memory safe from the OOM killer", why=_DEPRECATED,
             aliases=("OOMGUAR",)),
    _counter("NUMTCPSOCK", "number", "TCP sockets", why=_DEPRECATED),
    _counter("NUMOTHERSOCK", "number", "other sockets", why=_DEPRECATED,
             aliases=("NUMUNIXSOCK",)),
    _counter("TCPSNDBUF", "bytes", "TCP send buffers", why=_DEPRECATED, aliases=("TCPSENDBUF",)),
    _counter("TCPRCVBUF", "bytes", "TCP receive buffers", short="b", why=_DEPRECATED),
    _counter("OTHERSOCKBUF", "bytes", "other socket buffers", why=_DEPRECATED,
             aliases=("UNIXSOCKBUF",)),
    _counter("DGRAMRCVBUF", "bytes", "datagram receive buffers", why=_DEPRECATED),
    _counter("DCACHESIZE", "bytes", "dentry cache", short="x", why=_DEPRECATED,
             aliases=("DCACHE",)),
)  # fmt: skip
HISTORIC: tuple[_Limits, ...] = tuple(
    _counter(name, unit, "of old kernels", why=_DEPRECATED, option=False, column=False)
    for name, unit in (
        ("TOTVMPAGES", "pages"),
        ("IPCSHMPAGES", "pages"),
        ("ANONSHPAGES", "pages"),
        ("RSSPAGES", "pages"),
        ("SOCKRCVBUF", "bytes"),
        ("NUMSOCK", "number"),
    )
)
SLM_MODE = Param(
    "other.slmmode",
    "SLMMODE",
    Choice(("ubc", "slm", "all")),
    help="dead: service level management",
    ignored=_DEPRECATED,
)
SLM_LIMIT = Param(
    "other.slmmemorylimit",
    "SLMMEMORYLIMIT",
    BYTES,
    help="dead: service level management",
    ignored=_DEPRECATED,
)
