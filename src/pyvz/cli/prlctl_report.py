"""prlctl: statistics, monitor, problem-report."""

from __future__ import annotations

import sys
import time

from pyvz.cli.keypress import Keys
from pyvz.cli.program import failed
from pyvz.cli.subject import find
from pyvz.errors import UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "statistics": (
        ("-a,--all", "", "of all environments, a line with the UUID before each"),
        ("-l,--loop", "", "again every second, until a key is pressed"),
        ("--filter", "+PATTERN", "only counters whose name matches, * stands for anything"),
    ),
    "monitor": (("-r,--replay", "", "begin with the events that vzd still remembers"),),
    "problem-report": (
        ("-d,--dump", "", "write the report to stdout (default)"),
        ("--full", "", "accepted, no effect"),
    ),
}


def statistics_(args: Arguments, server: Server) -> int:
    """Print performance counters, tab-indented "name:<TAB>value"."""
    if bool(args.words) == args.has("all"):
        raise UsageError("Either an ID or name, or --all must be specified")
    args.no_more_words(1)
    refs = [find(server, ref).uuid for ref in args.words]
    with Keys() as keys:
        while True:
            _print_statistics(server, args, refs)
            if not args.has("loop") or keys.wait(1.0):
                return 0
            sys.stdout.write("\n")


def _print_statistics(server: Server, args: Arguments, refs: list[str]) -> None:
    try:
        reply = server.ask("Environment.Statistics", refs=refs, filters=args.values("filter"))
    except VZError as error:
        raise failed("get statistics", error) from error
    for entry in reply["statistics"]:
        sys.stdout.write(statistics_text(entry, with_uuid=args.has("all")))
    sys.stdout.flush()


def statistics_text(entry: dict[str, Any], *, with_uuid: bool) -> str:
    """Return the lines of one environment."""
    text = "{" + str(entry["uuid"]) + "}\n" if with_uuid else ""
    return text + "".join(f"\t{row['name']}:\t{row['value']}\n" for row in entry["rows"])


def monitor_(args: Arguments, server: Server) -> int:
    """Print events one per line, until Ctrl-C."""
    args.no_more_words()
    try:
        replies = server.connection.replies("Node.Events", replay=args.has("replay"))
        for reply in replies:
            event = reply.get("event")
            if event:
                sys.stdout.write(event_line(event))
                sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    return 0


def event_line(event: dict[str, Any]) -> str:
    """Return an event as one line: time, name, {uuid}, and what else is known."""
    moment = event.get("time")
    when = ""
    if isinstance(moment, int | float):
        when = time.strftime("%Y-%m-%d %H:%M:%S ", time.localtime(moment))
    uuid = event.get("uuid")
    words = [str(event.get("name"))]
    if uuid:
        words.append("{" + str(uuid) + "}")
    data = event.get("data")
    if isinstance(data, dict):
        words += [f"{key}={value}" for key, value in data.items()]
    return when + " ".join(words) + "\n"


def problem_report_(args: Arguments, server: Server) -> int:
    """Write the server's report to stdout."""
    args.no_more_words(1)
    report = server.ask("Node.ProblemReport")
    sys.stdout.write(str(report["report"]))
    return 0
