"""prlctl set: the options come from PARAMS, what is said comes from the server."""

from __future__ import annotations

import os
import sys

from pyvz.cli import options
from pyvz.cli.program import failed
from pyvz.cli.subject import find, say
from pyvz.errors import BadValue, UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

OPTIONS: dict[str, tuple[OptionRow, ...]] = {"set": options.PRLCTL}

# Not parameters: they say how prlctl itself works.
_NOT_SENT = frozenset({"login", "read-passwd", "verbose", "timeout", "compat", "debug"})


def set_(args: Arguments, server: Server) -> int:
    """Change parameters, at once where the environment runs, and for good."""
    ref = args.word("The ID or name")
    given = [
        {"name": name, "value": value} for name, value in args.options if name not in _NOT_SENT
    ]
    if not given:
        raise UsageError("No options are specified", hint="prlctl --help lists them.")
    subject = find(server, ref)
    for option in given:
        if option["name"] == "image" and option["value"]:  # as the original: of our directory
            option["value"] = os.path.realpath(option["value"])
        elif option["name"] == "distribution":
            from pyvz.cli import distributions  # noqa: PLC0415  few ask for it

            if option["value"] == "list":
                say(distributions.listing(families=False))
                return 0
            option["value"] = distributions.find(str(option["value"]), family=False)
    try:
        reply = server.change(
            "Environment.Set", ref=subject.uuid, dialect="prlctl", options=given, save=True
        )
    except BadValue:
        raise  # the original finds it before it begins: its text stands alone
    except VZError as error:
        raise failed(f"configure the {subject.kind}", error) from error
    for line in reply["echo"]:
        say(line)
    if reply["restart_needed"]:
        names = ", ".join(reply["restart_needed"])
        sys.stderr.write(f"Takes effect after a restart of the {subject.kind}: {names}\n")
    say(f"\nThe {subject.kind} has been successfully configured.")
    return 0
