"""vzctl: the older command line of OpenVZ, for containers only.

Verb rows and modules as in prlctl.py.  Global options stand before the verb.
"""

from __future__ import annotations

import sys

from pyvz.cli import arguments
from pyvz.cli.program import run
from pyvz.cli.server import Server
from pyvz.errors import BadValue, EnvironmentNotFound, Unsupported, UsageError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow

    VerbRow = tuple[str, str, str, str]

ID = "CTID|NAME"

VERBS: tuple[VerbRow, ...] = (
    ("create", ID, "create a container", "vzctl_provision"),
    ("destroy,delete", ID, "delete a stopped container with its files", "vzctl_provision"),
    ("register", f"PATH [{ID}]", "make an existing private area known", "vzctl_provision"),
    ("unregister", ID, "forget a container, keep its files", "vzctl_provision"),
    ("start", ID, "start", "vzctl_lifecycle"),
    ("stop", ID, "stop", "vzctl_lifecycle"),
    ("restart", ID, "stop and start again", "vzctl_lifecycle"),
    ("pause", ID, "freeze in memory", "vzctl_lifecycle"),
    ("suspend,chkpnt", ID, "write the memory to disk and end it", "vzctl_suspend"),
    ("resume,restore", ID, "continue a suspended or paused container", "vzctl_suspend"),
    ("mount", ID, "mount the root of a stopped container", "vzctl_lifecycle"),
    ("umount", ID, "unmount the root", "vzctl_lifecycle"),
    ("snapshot", ID, "keep disks and configuration as they are now", "vzctl_snapshot"),
    ("snapshot-list", ID, "list snapshots", "vzctl_snapshot"),
    ("snapshot-switch", ID, "go back to a snapshot", "vzctl_snapshot"),
    ("snapshot-delete", ID, "delete a snapshot", "vzctl_snapshot"),
    ("snapshot-mount", ID, "mount a snapshot read-only", "vzctl_snapshot"),
    ("snapshot-umount", ID, "unmount a snapshot", "vzctl_snapshot"),
    ("compact", ID, "give unused space of the disk back to the node", "vzctl_snapshot"),
    ("convert", ID, "copy the disk of a stopped container to another layout", "vzctl_snapshot"),
    ("status,stat", ID, "print one line about the state", "vzctl_lifecycle"),
    ("set", ID, "change parameters", "vzctl_set"),
    ("exec", f"{ID} COMMAND...", "run a command inside; 8 when it fails", "vzctl_session"),
    ("exec2", f"{ID} COMMAND...", "the same with the command's exit code", "vzctl_session"),
    ("exec3", f"{ID} COMMAND...", "as exec2, not through a shell", "vzctl_session"),
    ("enter", ID, "open a root shell inside", "vzctl_session"),
    ("console", f"{ID} [N]", "attach to the console", "vzctl_session"),
    ("runscript", f"{ID} FILE", "run a script of the node inside", "vzctl_session"),
    ("monitor", f"{ID}|0", "print events as they happen", "vzctl_session"),
)

LATER = (
    *("tsnapshot", "tsnapshot-delete", "reinstall"),
    *("execaction", "setrate", "unset", "cleanup-stail-registration"),
)
DEPRECATED = ("quotaon", "quotaoff", "quotainit")

GLOBAL: tuple[OptionRow, ...] = (
    ("--quiet", "", "print errors only"),
    ("--verbose", "", "accepted, no effect"),
    ("--skiplock", "", "refused: vzd serialises what is done to a container"),
    ("--skipowner", "", "accepted, no effect"),
    ("--ignore-ha-cluster", "", "accepted, no effect"),
    ("--configure-timeout", "SECONDS", "accepted, no effect"),
    ("--timeout", "SECONDS", "wait so long for another operation on the container to end"),
    ("--debug", "", "print the traceback of an error"),
)

_WORDS_ARE_COMMANDS = ("exec", "exec2", "exec3")


def main(argv: Sequence[str]) -> int:
    """Run vzctl with the words after the program's name; return the exit code."""
    return run("vzctl", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Parse the global options, find the verb and run it."""
    if argv and argv[0] == "--version":
        sys.stdout.write(f"vzctl version {VERSION}\n")
        return 0
    if not argv or argv[0] in {"--help", "-h", "help"}:
        from pyvz.cli.usage import vzctl_usage  # noqa: PLC0415

        sys.stdout.write(vzctl_usage())
        return 0 if argv else 20
    common = arguments.parse(GLOBAL, argv, words_end_options=True)
    if not common.words:
        raise UsageError("The command is not given", hint="vzctl --help lists the commands.")
    if common.has("skiplock"):
        raise Unsupported("--skiplock is not possible: vzd serialises what is done to a container")
    name, *rest = common.words
    if name in DEPRECATED:
        sys.stderr.write(f"Warning: The '{name}' action is deprecated\n")
        return 0
    row = find(name)
    timeout = common.number("timeout", 0) if common.has("timeout") else None
    module = load(row)
    verb = row[0].split(",")[0]
    args = parse(module, verb, rest)
    args.options += common.options
    if not args.words:
        raise BadValue("ctid is not given")
    with Server("vzctl", timeout=timeout, quiet=common.has("quiet")) as server:
        code: int = getattr(module, verb.replace("-", "_") + "_")(args, server)
    return code


def find(name: str) -> VerbRow:
    """Return the row of a verb.  Raises UsageError, Unsupported for one of later versions."""
    for row in VERBS:
        if name in row[0].split(","):
            return row
    if name in LATER:
        raise Unsupported(
            f"vzctl {name} is not supported yet by this version", hint="Nothing was changed."
        )
    raise UsageError(f"Bad command: {name}", hint="vzctl --help lists the commands.")


def load(row: VerbRow) -> ModuleType:
    """Import the module of a verb's row."""
    module: ModuleType = __import__("pyvz.cli." + row[3], fromlist=["OPTIONS"])
    return module


def parse(module: ModuleType, verb: str, argv: list[str]) -> Arguments:
    """Parse the words after the verb."""
    rows = (*module.OPTIONS.get(verb, ()), ("--debug", "", ""))
    if verb in _WORDS_ARE_COMMANDS:
        # Everything after the CTID is the command's, options too.
        result = arguments.Arguments()
        result.words = argv
        return result
    return arguments.parse(rows, argv, abbreviations=True)


class Container:
    """The container that the command line names, as vzctl prints it."""

    def __init__(self, uuid: str, shown: str, reply: dict[str, Any]) -> None:
        self.uuid = uuid
        self.shown = shown
        self.status = str(reply["status"])
        self.mounted = bool(reply["mounted"])


def is_id(text: str) -> bool:
    """Whether TEXT has the form of a CTID: a number, or a UUID with or without braces."""
    bare = text.strip("{}")
    if text.isascii() and text.isdigit():
        return True
    return (
        len(bare) == 36 and bare.count("-") == 4 and not set(bare) - set("0123456789abcdefABCDEF-")
    )


def container(server: Server, ref: str) -> Container:
    """Return the container that REF names.

    Raises EnvironmentNotFound for an id without container, BadValue for an unknown name.
    """
    found = look(server, ref)
    if found is not None:
        return found
    if is_id(ref):
        raise EnvironmentNotFound("Container configuration file does not exist")
    raise BadValue(f"Invalid ctid is specified: {ref}")


def look(server: Server, ref: str) -> Container | None:
    """Return the container that REF names, None when there is none."""
    reply = server.ask("Environment.Status", ref=ref)
    if not reply["exists"] or reply["kind"] != "ct":
        return None
    uuid = str(reply["uuid"])
    shown = ref if ref.isascii() and ref.isdigit() else uuid
    return Container(uuid, shown, reply)


def tell(args: Arguments, text: str) -> None:
    """Print a line of what is going on, unless --quiet was given."""
    if not args.has("quiet"):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
