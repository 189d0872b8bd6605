"""vzlist: containers in columns.  Fields, widths, types and order as in vzlist 7 (vzlist.c)."""

from __future__ import annotations

import os
import sys

from pyvz.cli import arguments
from pyvz.cli.program import run
from pyvz.cli.server import Server
from pyvz.cli.vzlist_fields import FIELDS, HIDDEN
from pyvz.errors import PermissionDenied, UsageError, VZError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.vzlist_fields import Field, Row

OPTIONS: tuple[OptionRow, ...] = (
    ("-a,--all", "", "list all containers"),
    ("-S,--stopped", "", "list stopped containers"),
    ("-n,--name", "", "display container names instead of host names"),
    ("-H,--no-header", "", "suppress displaying the header"),
    ("-o,--output", "FIELD[,FIELD...]", "display only these fields"),
    ("-j,--json", "", "output in JSON format"),
    ("-s,--sort", "[-]FIELD", "sort by the field (- reverses the order)"),
    ("-h,--hostname", "PATTERN", "filter by host name"),
    ("-N,--name_filter", "PATTERN", "filter by name"),
    ("-d,--description", "PATTERN", "filter by description"),
    ("-i,--netif", "IFNAME", "filter by the interface's name on the node"),
    ("-1", "", "only the CTIDs, without header"),
    ("-L,--list", "", "print the names of the fields"),
    ("-c,--compat", "", "the fields status, configured_ip, smart_name"),
    ("-w,--skipowner", "", "accepted, no effect"),
    ("--help", "", "print how to use it"),
    ("--debug", "", "print the traceback of an error"),
)

DEFAULT = "veid,numproc,status,configured_ip,hostname"
DEFAULT_NAMES = "ctid,numproc,status,configured_ip,name"
DEFAULT_NETIF = "ctid,status,host_ifname,configured_ip,hostname"
DEFAULT_COMPAT = "status,configured_ip,smart_name"
DEFAULT_JSON = (
    "ctid,private,root,hostname,name,smart_name,description,ostemplate,distribution,ip,"
    "configured_ip,nameserver,searchdomain,status,numproc,kmemsize,lockedpages,privvmpages,"
    "shmpages,physpages,vmguarpages,oomguarpages,numtcpsock,numflock,numpty,numsiginfo,"
    "tcpsndbuf,tcprcvbuf,othersockbuf,dgramrcvbuf,numothersock,dcachesize,numfile,numiptent,"
    "swappages,diskspace,diskinodes,laverage,uptime,cpulimit,cpuunits,cpus,ioprio,iolimit,"
    "iopslimit,onboot,bootorder,layout,features,disabled"
)


def main(argv: Sequence[str]) -> int:
    """Run vzlist with the words after the program's name; return the exit code."""
    return run("vzlist", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Parse ARGV and print the list."""
    if argv and argv[0] == "--version":
        sys.stdout.write(f"vzlist version {VERSION}\n")
        return 0
    args = arguments.parse(OPTIONS, argv, abbreviations=True)
    if args.has("help"):
        from pyvz.cli.usage import vzlist_usage  # noqa: PLC0415

        sys.stdout.write(vzlist_usage())
        return 0
    if args.has("list"):
        listed = (name for name in FIELDS if name not in HIDDEN)
        sys.stdout.write("".join(f"{name:<15} {FIELDS[name][0]:<15}\n" for name in listed))
        return 0
    columns = _columns(args)
    sort = _sort_name(args)
    if os.geteuid() != 0:
        raise PermissionDenied("This program can be run by root only.")
    with Server("vzlist") as server:
        rows = _rows(args, server, columns, sort)
    rows = _sorted([row for row in rows if _shown(args, row)], sort)
    if args.has("json"):
        sys.stdout.write(json_text(rows, columns))
        return 0
    if not (args.has("no-header") or args.has("1")):
        sys.stdout.write(_header(columns))
    for row in rows:
        sys.stdout.write(_line(row, columns))
    return 0


def _columns(args: Arguments) -> list[str]:
    """Return the names of the fields to print."""
    text = args.value("output")
    if args.has("1"):
        text = "veid"
    elif not text and args.has("name"):
        text = DEFAULT_NAMES
    elif not text:
        text = _default(args)
    names = text.rstrip(",").split(",")
    for name in names:
        if name not in FIELDS:
            raise UsageError(f"Unknown field: {name}")
    return names


def _default(args: Arguments) -> str:
    if args.has("json"):
        return DEFAULT_JSON
    if args.has("compat"):
        return DEFAULT_COMPAT
    return DEFAULT_NETIF if args.has("netif") else DEFAULT


def _sort_name(args: Arguments) -> str:
    """Return the field to sort by, with a dash before it to reverse."""
    name = args.value("sort") or "veid"
    if name.removeprefix("-") not in FIELDS:
        raise UsageError(f"{name} is an invalid field name for this query.")
    return name


_FILTERS = {
    "hostname": "hostname",
    "name_filter": "name",
    "description": "description",
    "netif": "host_ifname",
}


def _rows(args: Arguments, server: Server, columns: list[str], sort: str) -> list[Row]:
    wanted = {"uuid", "status"}
    for name in (*columns, sort.removeprefix("-")):
        wanted.update(FIELDS[name][2])
    wanted.update(field for option, field in _FILTERS.items() if args.has(option))
    try:
        reply = server.ask("Environment.List", refs=args.words, fields=sorted(wanted), kind="ct")
    except VZError as error:
        error.message = f"Unable to get the list of containers: {error.message}"
        raise
    problems = reply.get("errors") or ()
    for problem in problems:
        raise UsageError(f"Container ID {problem['ref']} is invalid.")
    rows: list[Row] = reply["rows"]
    return rows


def _shown(args: Arguments, row: Row) -> bool:
    """Whether the options ask for this container."""
    if args.has("stopped"):
        if row["status"] == "running":
            return False
    elif not (args.has("all") or args.words) and row["status"] not in {"running", "paused"}:
        return False
    for option, field in _FILTERS.items():
        pattern = args.value(option)
        if pattern is not None and not _matches(row.get(field), pattern, exact=option == "netif"):
            return False
    return True


def _matches(value: object, pattern: str, *, exact: bool) -> bool:
    if exact:
        return isinstance(value, list) and pattern in value
    from fnmatch import fnmatchcase  # noqa: PLC0415  only with a filter

    return fnmatchcase(str(value or ""), pattern)


def _sorted(rows: list[Row], sort: str) -> list[Row]:
    """Return the rows in order; where the field is empty they come first, as in the original."""
    key = FIELDS[sort.removeprefix("-")][3].key
    ordered = sorted(rows, key=lambda row: (key(row), str(row["uuid"])))
    return ordered[::-1] if sort.startswith("-") else ordered


def _header(columns: list[str]) -> str:
    cells = [_cell(FIELDS[name], FIELDS[name][0], last=name is columns[-1]) for name in columns]
    return " ".join(cells) + "\n"


def _line(row: Row, columns: list[str]) -> str:
    end = len(columns) - 1
    cells = []
    for index, name in enumerate(columns):
        field = FIELDS[name]
        cells.append(_cell(field, field[3].text(row, index == end), last=index == end))
    return " ".join(cells).rstrip() + "\n"


def _cell(field: Field, text: str, *, last: bool) -> str:
    """Return TEXT in its column; a left-aligned last column is not padded."""
    return text if last and field[1].startswith("%-") else field[1] % text


def json_text(rows: list[Row], columns: list[str]) -> str:
    """Return the rows as the JSON of vzlist: two blanks, four for members, six inside."""
    import json  # noqa: PLC0415  loaded by the client anyway

    objects = []
    for row in rows:
        members = []
        for name in columns:
            value = json.dumps(FIELDS[name][3].value(row), indent=2, ensure_ascii=False)
            if not value.startswith("{"):  # lists stay on one line
                value = json.dumps(json.loads(value), ensure_ascii=False)
            members.append(f'\n    "{name}": ' + value.replace("\n", "\n    "))
        objects.append("\n  {" + ",".join(members) + "\n  }")
    return "[" + ",".join(objects) + "\n]\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
