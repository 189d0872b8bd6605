"""prlctl list: the table, its JSON form, and `list -i`.

Columns, widths and the order of lines as in prlctl 7 (PrlList.cpp, PrlOutFormatter.cpp).
"""

from __future__ import annotations

import sys

from pyvz.cli.output import first_addresses, on_off_list, prl_json
from pyvz.cli.program import failed, tell
from pyvz.cli.subject import unknown
from pyvz.errors import UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

    Row = dict[str, Any]
    # name, header, printf, canonical fields it needs, text of a row (and: is it the last column)
    Column = tuple[str, str, str, tuple[str, ...], Callable[[Row, bool], str]]

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "list": (
        ("-a,--all", "", "all environments, not only the running ones"),
        ("-S,--stopped", "", "only the stopped ones"),
        ("-o,--output", "FIELD[,FIELD...]", "these columns"),
        ("-s,--sort", "[-]FIELD", "sort by uuid, home, name or ha_prio; - reverses"),
        ("-H,--no-header", "", "no header line"),
        ("-n,--name", "", "with --compat: names instead of host names"),
        ("-t,--template", "", "templates, and only them"),
        ("-i,--info", "", "everything about each environment"),
        ("-f,--full", "", "with -i: network filters, high availability, shaping"),
        ("-j,--json", "", "as JSON"),
        ("-L,--list", "", "print the names of the columns"),
        ("--vmtype", "ct|vm|all", "only environments of this type (default: all)"),
    ),
}


def _of(field: str) -> Callable[[Row, bool], str]:
    return lambda row, last: _text(row.get(field))  # noqa: ARG005  all columns are called alike


def _text(value: Any) -> str:
    return str(value) if value not in (None, "") else "-"


def _uuid(row: Row, last: bool) -> str:  # noqa: ARG001, FBT001
    return "{" + str(row["uuid"]) + "}"


def _type(row: Row, last: bool) -> str:  # noqa: ARG001, FBT001
    return str(row["kind"]).upper()


def _addresses(field: str) -> Callable[[Row, bool], str]:
    def text(row: Row, last: bool) -> str:  # noqa: FBT001
        addresses = first_addresses(row.get(field) or ())
        if not addresses:
            return "-"
        return " ".join(addresses) + " " if last else addresses[0]

    return text


def _joined(field: str, end: str = " ", between: str = " ") -> Callable[[Row, bool], str]:
    def text(row: Row, last: bool) -> str:  # noqa: ARG001, FBT001
        values = row.get(field) or ()
        return between.join(values) + end if values else "-"

    return text


def _macs(row: Row, last: bool) -> str:  # noqa: ARG001, FBT001
    macs = row.get("mac") or ()
    return "".join(mac.replace(":", "").upper() + " " for mac in macs) or "-"


def _features(row: Row, last: bool) -> str:  # noqa: ARG001, FBT001
    return on_off_list(row.get("features"))


def _ha_enable(row: Row, last: bool) -> str:  # noqa: ARG001, FBT001
    return "no" if row.get("ha_enable") is False else "yes"


def _number(field: str) -> Callable[[Row, bool], str]:
    return lambda row, last: str(row.get(field) or 0)  # noqa: ARG005


def _fixed(word: str) -> Callable[[Row, bool], str]:
    return lambda row, last: word  # noqa: ARG005


COLUMNS: tuple[Column, ...] = (
    ("uuid", "UUID", "%-39s ", ("uuid",), _uuid),
    ("envid", "ENVID", "%-10s ", ("envid",), _of("envid")),
    ("home", "HOME", "%-32s ", ("home",), _of("home")),
    ("type", "T", "%-2s ", ("kind",), _type),
    ("name", "NAME", "%-32s ", ("name",), _of("name")),
    ("status", "STATUS", "%-12s ", ("status",), _of("status")),
    ("dist", "DIST", "%-15s ", ("distribution",), _of("distribution")),
    ("owner", "OWNER", "%-32s ", ("owner",), _of("owner")),
    ("system-flags", "SYSTEM_FLAGS", "%-32s ", (), _fixed("")),
    ("description", "DESCRIPTION", "%-32s ", ("description",), _of("description")),
    ("numproc", "NPROC", "%9s ", (), _fixed("-")),
    ("ip", "IP_ADDR", "%-15s ", ("ip",), _addresses("ip")),
    ("ip_configured", "IP_ADDR", "%-15s ", ("ip_configured",), _addresses("ip_configured")),
    ("hostname", "HOSTNAME", "%-32s ", ("hostname",), _of("hostname")),
    ("netif", "NETIF", "%-16s ", ("ifname",), _joined("ifname")),
    ("mac", "MAC", "%-36s ", ("mac",), _macs),
    ("ostemplate", "OSTEMPLATE", "%-24s ", ("ostemplate",), _of("ostemplate")),
    ("features", "FEATURES", "%-256s ", ("features",), _features),
    ("location", "LOCATION", "%-39s ", (), _fixed("local")),
    ("iolimit", "IOLIMIT", "%-10s ", ("iolimit",), _number("iolimit")),
    ("netdev", "NETDEV", "%-14s ", ("netdev",), _joined("netdev", "", ",")),
    ("ha_enable", "HA_ENABLE", "%-9s ", ("ha_enable",), _ha_enable),
    ("ha_prio", "HA_PRIO", "%-10s ", ("ha_prio",), _number("ha_prio")),
    ("-", "-", "%-10s ", (), _fixed("-")),
)

ALIASES = {"id": "uuid", "ctid": "uuid", "veid": "uuid", "private": "home"}
HIDDEN = ("numproc", "ostemplate")
VM_ONLY = ("system-flags",)
SORTABLE = {"uuid": "uuid", "home": "home", "name": "name", "ha_prio": "ha_prio"}

DEFAULT = "uuid,status,ip_configured,type,name"
DEFAULT_TEMPLATE = "uuid,dist,type,name"
DEFAULT_COMPAT = "status,ip,name"
DEFAULT_COMPAT_NAME = "uuid,numproc,status,ip,name"


def list_(args: Arguments, server: Server) -> int:
    """List environments."""
    kind = args.value("vmtype", "all")
    kinds = {"all": None, "ct": "ct", "c": "ct", "vm": "vm", "v": "vm", "": None}
    if kind not in kinds:
        raise UsageError(f"An incorrect value '{kind}' for --vmtype is specified")
    if args.has("list"):
        sys.stdout.write(column_names(kinds[kind or ""]))
        return 0
    if args.has("info"):
        from pyvz.cli.prlctl_info import list_info  # noqa: PLC0415

        return list_info(args, server, kinds[kind or ""])
    try:
        columns = _columns(args)
        sort_key = _sort_field(args, columns)
    except UsageError as error:
        tell(error)
        return 1
    rows = _rows(args, server, columns, kinds[kind or ""], sort_key)
    shown = _sorted(_selected(args, rows), args, sort_key)
    if args.has("json"):
        sys.stdout.write(prl_json([_json_row(row, columns) for row in shown]) + "\n")
        return 0
    if not args.has("no-header"):
        sys.stdout.write(_line([column[1] for column in columns], columns))
    for row in shown:
        sys.stdout.write(_line(_cells(row, columns), columns))
    return 0


def column_names(kind: str | None) -> str:
    """Return what `list -L` prints."""
    return "".join(
        f"{name:<20} {header}\n"
        for name, header, *_ in COLUMNS
        if name not in HIDDEN and not (name in VM_ONLY and kind == "ct")
    )


def _column(name: str, *, compat: bool) -> tuple[str, Column]:
    """Return the column of a field, under the name it was asked for (the key in JSON)."""
    known = ALIASES.get(name, name)
    for column in COLUMNS:
        if column[0] == known:
            return name, column
    if compat:
        return name, COLUMNS[-1]
    raise UsageError(f"Unknown field: {name}")


def _columns(args: Arguments) -> list[Column]:
    compat = args.has("compat")
    fields = args.value("output")
    if not fields:
        if args.has("template"):
            fields = DEFAULT_TEMPLATE
        elif compat:
            fields = DEFAULT_COMPAT_NAME if args.has("name") else DEFAULT_COMPAT
        else:
            fields = DEFAULT
    found = [_column(name, compat=compat) for name in fields.rstrip(",").split(",")]
    return [(name, *column[1:]) for name, column in found]


def _sort_field(args: Arguments, columns: list[Column]) -> str | None:
    """Return the canonical field to sort by; None leaves the server's order."""
    wanted = args.value("sort")
    if wanted:
        name = wanted.removeprefix("-")
        try:
            _column(name, compat=False)
        except UsageError:
            raise UsageError(f"{name} is an invalid field name in this query.") from None
    elif args.value("output"):
        name = columns[0][0]
    else:
        name = "name"
    return SORTABLE.get(ALIASES.get(name, name))


def _rows(
    args: Arguments,
    server: Server,
    columns: list[Column],
    kind: str | None,
    sort_key: str | None,
) -> list[Row]:
    fields = {"uuid", "status", "template"}
    for column in columns:
        fields.update(column[3])
    if sort_key:
        fields.add(sort_key)
    try:
        reply = server.ask("Environment.List", refs=args.words, fields=sorted(fields), kind=kind)
    except VZError as error:
        raise failed("get VM config" if args.words else "get VM list", error) from error
    for problem in reply.get("errors") or ():
        raise unknown(str(problem["ref"]))
    rows: list[Row] = reply["rows"]
    return rows


def _selected(args: Arguments, rows: list[Row]) -> list[Row]:
    """Return the rows that the options ask for."""
    templates = args.has("template")
    if args.words:
        return [row for row in rows if row.get("template")] if templates else rows
    rows = [row for row in rows if bool(row.get("template")) == templates]
    if args.has("all") or templates:
        return rows
    state = "stopped" if args.has("stopped") else "running"
    return [row for row in rows if row["status"] == state]


def _sorted(rows: list[Row], args: Arguments, key: str | None) -> list[Row]:
    if key == "ha_prio":
        rows = sorted(rows, key=lambda row: row.get("ha_prio") or 0)
    elif key:
        rows = sorted(rows, key=lambda row: str(row.get(key) or ""))
    return rows[::-1] if (args.value("sort") or "").startswith("-") else rows


def _cells(row: Row, columns: list[Column]) -> list[str]:
    end = len(columns) - 1
    return [column[4](row, index == end) for index, column in enumerate(columns)]


def _line(cells: list[str], columns: list[Column]) -> str:
    end = len(cells) - 1
    padded = [
        text if index == end else columns[index][2] % text for index, text in enumerate(cells)
    ]
    return "".join(padded) + "\n"


def _json_row(row: Row, columns: list[Column]) -> dict[str, str]:
    cells = _cells(row, columns)
    return {
        # Only the field uuid loses its braces; its aliases keep them (PrlList.cpp: print).
        column[0]: text.strip("{}") if column[0] == "uuid" else text
        for column, text in zip(columns, cells, strict=True)
    }
