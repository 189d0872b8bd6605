"""The fields of vzlist: header, printf, what they need from the server, how they are shown.

FIELDS maps a name to (header, printf, canonical fields, shape).  A shape turns a row of raw values
into the text of a column, the value of the JSON form and the key to sort by.
"""

from __future__ import annotations

from pyvz.cli.output import first_addresses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Row = dict[str, Any]
    Field = tuple[str, str, tuple[str, ...], "Shape"]

RUNNING = frozenset({"running", "paused", "stopping", "suspending", "pausing"})


class Shape:
    """A text or number; "-" and null where there is none."""

    def __init__(self, field: str) -> None:
        self.field = field

    def value(self, row: Row) -> Any:
        """Return the value of the JSON form."""
        found = row.get(self.field)
        return None if found == "" else found

    def text(self, row: Row, last: bool) -> str:  # noqa: ARG002, FBT001
        """Return the text of the column; LAST: whether it is the last one."""
        value = self.value(row)
        return "-" if value is None else str(value)

    def key(self, row: Row) -> tuple[bool, Any]:
        """Return what to sort by: rows without a value first."""
        value = self.value(row)
        if value is None:
            return (False, 0)
        return (True, value if isinstance(value, str | int | float) else str(value))


class Id(Shape):
    """The CTID: the legacy number where there is one, else the UUID."""


class Status(Shape):
    """The state in vzlist's words."""

    def value(self, row: Row) -> str:
        """Return running, paused, mounted, suspended, stopped or unknown."""
        status = str(row.get(self.field))
        if status in {"running", "paused", "mounted", "suspended", "stopped"}:
            return status
        if status in RUNNING:
            return "running"
        return "stopped" if status in {"starting", "resuming"} else "unknown"


class Zero(Shape):
    """A number where 0 means none: "-" in the column, 0 in JSON."""

    def value(self, row: Row) -> int:
        """Return the number, 0 where it is not set."""
        return int(row.get(self.field) or 0)

    def text(self, row: Row, last: bool) -> str:  # noqa: ARG002, FBT001
        """Return the number, or "-" for 0."""
        return str(self.value(row) or "-")


class Number(Shape):
    """A number with a value that counts where it is not set."""

    def __init__(self, field: str, default: int) -> None:
        super().__init__(field)
        self.default = default

    def value(self, row: Row) -> int:
        """Return the number."""
        found = row.get(self.field)
        return self.default if found is None else int(found)


class Words(Shape):
    """A list: in the column its first item, all of them where it is the last column."""

    def items(self, row: Row) -> list[str]:
        """Return the list."""
        return [str(item) for item in row.get(self.field) or ()]

    def value(self, row: Row) -> Any:
        """Return the list."""
        return self.items(row)

    def text(self, row: Row, last: bool) -> str:  # noqa: FBT001
        """Return the first item, or all."""
        items = self.items(row)
        return "-" if not items else " ".join(items) if last else items[0]

    def key(self, row: Row) -> tuple[bool, Any]:
        """Return the list joined."""
        items = self.items(row)
        return (bool(items), " ".join(items))


class Addresses(Words):
    """Addresses without their masks."""

    def items(self, row: Row) -> list[str]:
        """Return the addresses, IPv4 first."""
        return first_addresses(row.get(self.field) or ())


class FirstWord(Words):
    """A list of which JSON shows the first item only."""

    def value(self, row: Row) -> Any:
        """Return the first item, None where there is none."""
        items = self.items(row)
        return items[0] if items else None


class YesNo(Shape):
    """yes or no in the column, a boolean in JSON."""

    def __init__(self, field: str, *, default: bool = False) -> None:
        super().__init__(field)
        self.default = default

    def value(self, row: Row) -> bool:
        """Return the boolean."""
        found = row.get(self.field)
        return self.default if found is None else found is True or found == "yes"

    def text(self, row: Row, last: bool) -> str:  # noqa: ARG002, FBT001
        """Return yes or no."""
        return "yes" if self.value(row) else "no"


class OnBoot(YesNo):
    """yes, no, or auto in the column; only yes is true in JSON."""

    def text(self, row: Row, last: bool) -> str:  # noqa: ARG002, FBT001
        """Return the word."""
        return str(row.get(self.field) or "no")


class Member(Shape):
    """One figure of a bean counter or of the disk quota; JSON has the whole object."""

    def __init__(self, field: str, member: str, *, live: bool) -> None:
        super().__init__(field)
        self.member = member
        self.live = live  # only known while the container runs

    def value(self, row: Row) -> Any:
        """Return the object; figures of use are 0 while the container does not run."""
        found = row.get(self.field)
        if not isinstance(found, dict) or "held" not in found or row["status"] in RUNNING:
            return found
        return {**found, "held": 0, "maxheld": 0, "failcnt": 0}

    def _figure(self, row: Row) -> int | None:
        found = row.get(self.field)
        if not isinstance(found, dict) or (self.live and row["status"] not in RUNNING):
            return None
        figure = found.get(self.member)
        return None if figure is None else int(figure)

    def text(self, row: Row, last: bool) -> str:  # noqa: ARG002, FBT001
        """Return the figure."""
        figure = self._figure(row)
        return "-" if figure is None or (figure == 0 and self.member == "usage") else str(figure)

    def key(self, row: Row) -> tuple[bool, Any]:
        """Return the figure."""
        figure = self._figure(row)
        return (figure is not None, figure or 0)


class Load(Shape):
    """Three load averages."""

    def text(self, row: Row, last: bool) -> str:  # noqa: ARG002, FBT001
        """Return "1.00/0.50/0.25"."""
        loads = self.value(row)
        return "/".join(f"{load:1.2f}" for load in loads) if loads else "-"

    def value(self, row: Row) -> list[float] | None:
        """Return the list."""
        loads = row.get(self.field)
        return [round(float(load), 2) for load in loads] if loads else None

    def key(self, row: Row) -> tuple[bool, Any]:
        """Return the averages."""
        loads = self.value(row)
        return (loads is not None, tuple(loads or ()))


class Uptime(Shape):
    """Seconds since init was started."""

    def value(self, row: Row) -> float:
        """Return the seconds, with three decimals."""
        return round(float(row.get(self.field) or 0.0), 3)

    def text(self, row: Row, last: bool) -> str:  # noqa: ARG002, FBT001
        """Return "000d00h:05m:07s"."""
        seconds = int(self.value(row))
        if not seconds:
            return "-"
        minutes, second = divmod(seconds, 60)
        hours, minute = divmod(minutes, 60)
        days, hour = divmod(hours, 24)
        return f"{days:03}d{hour:02}h:{minute:02}m:{second:02}s"

    def key(self, row: Row) -> tuple[bool, Any]:
        """Return the negated seconds: the longest first, as in the original."""
        return (self.value(row) > 0, -self.value(row))


class Features(Shape):
    """Switches: "nfs:on,bridge:off"; an object in JSON."""

    def value(self, row: Row) -> Any:
        """Return the object, None where nothing is set."""
        return row.get(self.field) or None

    def text(self, row: Row, last: bool) -> str:  # noqa: ARG002, FBT001
        """Return the switches in one word."""
        found = self.value(row)
        if not found:
            return "-"
        return ",".join(f"{name}:{'on' if on else 'off'}" for name, on in found.items())


class DevNodes(Words):
    """Device nodes; an object name -> mode in JSON."""

    def value(self, row: Row) -> Any:
        """Return the object, None where there is none."""
        pairs = (item.partition(":") for item in self.items(row))
        return {name: mode for name, _, mode in pairs} or None


class Layout(Shape):
    """The layout number of the original: 5 for ploop, 4 for a plain directory."""

    def value(self, row: Row) -> int:
        """Return the number, 0 where it is unknown."""
        name = str(row.get(self.field) or "")
        return {"ploop": 5, "simfs": 4}.get(name, int(name) if name.isdigit() else 0)


class SmartName(Shape):
    """The name where there is one, else the CTID."""

    def value(self, row: Row) -> str:
        """Return the name."""
        return str(row.get("name") or row.get("envid") or row["uuid"])


class Absent(Shape):
    """A field that no kernel of today has."""

    def __init__(self) -> None:
        super().__init__("")


class Engine(Shape):
    """The template technology: all are EZ templates."""

    def value(self, row: Row) -> str | None:
        """Return EZ where the container is of a template."""
        return "EZ" if row.get(self.field) else None


def _simple(name: str, header: str, fmt: str, shape: Shape, *more: str) -> tuple[str, Field]:
    needs = tuple(field for field in (shape.field, *more) if field)
    return name, (header, fmt, needs, shape)


_UBC: tuple[tuple[str, str], ...] = (
    ("kmemsize", "KMEMSIZE"),
    ("lockedpages", "LOCKEDP"),
    ("privvmpages", "PRIVVMP"),
    ("shmpages", "SHMP"),
    ("numproc", "NPROC"),
    ("physpages", "PHYSP"),
    ("vmguarpages", "VMGUARP"),
    ("oomguarpages", "OOMGUARP"),
    ("numtcpsock", "NTCPSOCK"),
    ("numflock", "NFLOCK"),
    ("numpty", "NPTY"),
    ("numsiginfo", "NSIGINFO"),
    ("tcpsndbuf", "TCPSNDB"),
    ("tcprcvbuf", "TCPRCVB"),
    ("othersockbuf", "OTHSOCKB"),
    ("dgramrcvbuf", "DGRAMRB"),
    ("numothersock", "NOTHSOCK"),
    ("dcachesize", "DCACHESZ"),
    ("numfile", "NFILE"),
    ("numiptent", "NIPTENT"),
    ("swappages", "SWAPP"),
)
_UBC_MEMBERS: tuple[tuple[str, str, str, bool], ...] = (
    ("", "", "held", True),
    (".h", ".H", "held", True),
    (".m", ".M", "maxheld", True),
    (".b", ".B", "barrier", False),
    (".l", ".L", "limit", False),
    (".f", ".F", "failcnt", True),
)

# Other names that are understood and not listed: held, as some panels ask for it.
HIDDEN = frozenset(f"{name}.h" for name, _ in _UBC)


def _ubc() -> list[tuple[str, Field]]:
    return [
        _simple(name + dot, header + up, "%10s", Member(name, member, live=live))
        for name, header in _UBC
        for dot, up, member, live in _UBC_MEMBERS
    ]


def _quota() -> list[tuple[str, Field]]:
    members = (("", "", "usage"), (".s", ".S", "softlimit"), (".h", ".H", "hardlimit"))
    return [
        _simple(name + dot, header + up, "%10s", Member(name, member, live=False))
        for name, header in (("diskspace", "DQBLOCKS"), ("diskinodes", "DQINODES"))
        for dot, up, member in members
    ]


def _fields(groups: Sequence[Sequence[tuple[str, Field]]]) -> dict[str, Field]:
    return dict(row for group in groups for row in group)


FIELDS: dict[str, Field] = _fields(
    (
        (
            _simple("ctid", "CTID", "%36s", Id("envid")),
            _simple("private", "PRIVATE", "%-32s", Shape("home")),
            _simple("root", "ROOT", "%-36s", Shape("root")),
            _simple("veid", "CTID", "%36s", Id("envid")),
            _simple("uuid", "UUID", "%36s", Shape("uuid")),
            _simple("hostname", "HOSTNAME", "%-32s", Shape("hostname")),
            _simple("name", "NAME", "%-32s", Shape("name")),
            _simple("smart_name", "NAME", "%-32s", SmartName("name"), "envid"),
            _simple("description", "DESCRIPTION", "%-32s", Shape("description")),
            _simple("tm", "TM", "%-2s", Engine("ostemplate")),
            _simple("ostemplate", "OSTEMPLATE", "%-24s", Shape("ostemplate")),
            _simple("distribution", "DISTRIBUTION", "%-15s", Shape("distribution")),
            _simple("ip", "IP_ADDR", "%-15s", Addresses("ip")),
            _simple("nameserver", "NAMESERVER", "%-15s", Words("nameserver")),
            _simple("searchdomain", "SEARCHDOMAIN", "%-15s", Words("searchdomain")),
            _simple("configured_ip", "CFG_IP_ADDR", "%-15s", Addresses("ip_configured")),
            _simple("status", "STATUS", "%-9s", Status("status")),
        ),
        _ubc(),
        _quota(),
        (
            _simple("laverage", "LAVERAGE", "%14s", Load("laverage")),
            _simple("cpulimit", "CPULIM", "%7s", Number("cpulimit", 0)),
            _simple("cpulimit%", "CPUL_%", "%7s", Number("cpulimit", 0)),
            _simple("cpulimitM", "CPUL_M", "%7s", Number("cpulimit_mhz", 0)),
            _simple("cpuunits", "CPUUNI", "%7s", Number("cpuunits", 1000)),
            _simple("cpus", "CPUS", "%5s", Zero("cpus")),
            _simple("cpumask", "CPUMASK", "%16s", Shape("cpumask")),
            _simple("nodemask", "NODEMASK", "%16s", Shape("nodemask")),
            _simple("host_ifname", "HOST_IFNAME", "%-16s", FirstWord("host_ifname")),
            _simple("mac", "MAC", "%-17s", FirstWord("mac")),
            _simple("host_mac", "HOST_MAC", "%-17s", FirstWord("host_mac")),
            _simple("gw", "GATEWAY", "%-15s", FirstWord("gw")),
            _simple("network", "NETWORK", "%-32s", FirstWord("network")),
            _simple("ifname", "IFNAME", "%-8s", FirstWord("ifname")),
            _simple("netif", "NET_INTERFACES", "%-32s", FirstWord("ifname")),
            _simple("onboot", "ONBOOT", "%-6s", OnBoot("onboot")),
            _simple("disabled", "DISABL", "%-6s", YesNo("disabled")),
            _simple("autostop", "AUTOSTOP", "%-8s", Shape("autostop")),
            _simple("bootorder", "BOOTORDER", "%10s", Shape("bootorder")),
            _simple("uptime", "UPTIME", "%15s", Uptime("uptime")),
            _simple("ioprio", "IOPRIO", "%6s", Shape("ioprio")),
            _simple("iolimit", "IOLIMIT", "%10s", Zero("iolimit")),
            _simple("iopslimit", "IOPSLIMIT", "%10s", Zero("iopslimit")),
            _simple("features", "FEATURES", "%-15s", Features("features")),
            _simple("layout", "LAYOUT", "%6s", Layout("layout")),
            _simple("device", "DEVICE", "%-16s", Shape("device")),
            _simple("ha_enable", "HA_ENABLE", "%-9s", YesNo("ha_enable", default=True)),
            _simple("ha_prio", "HA_PRIO", "%10s", Shape("ha_prio")),
            _simple("devnodes", "DEVNODES", "%-16s", DevNodes("devnodes")),
            _simple("origin_sample", "ORIGIN_SAMPLE", "%-32s", Shape("origin_sample")),
            _simple("type", "TYPE", "%-8s", Shape("ve_type")),
        ),
    )
)
SLM = ("slmmode", "slminst", "slminst.l", "slmlowinst", "slmlowinst.l", "slmoomlimit", "slmavg")
FIELDS |= dict(_simple(name, name.upper(), "%10s", Absent()) for name in (*SLM, "slmquality"))
