"""prlctl: the daily command line of OpenVZ 7.

The verbs are rows `(names, words, summary, module)`; the module is imported when one of its verbs
is called, and holds `OPTIONS[verb]` (rows of the parser) and a function named after the verb, which
gets the parsed Arguments and the Server and returns the exit code.
"""

from __future__ import annotations

import sys

from pyvz.cli import arguments
from pyvz.cli.program import run
from pyvz.cli.server import Server
from pyvz.errors import DaemonUnreachable, Unsupported, UsageError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from pyvz.cli.arguments import Arguments, OptionRow

    VerbRow = tuple[str, str, str, str]

ID = "ID|NAME"

VERBS: tuple[VerbRow, ...] = (
    ("create", "NAME", "create a container or a virtual machine", "prlctl_provision"),
    ("delete,destroy", ID, "delete an environment with its files", "prlctl_provision"),
    ("register", "PATH", "make an existing private area known", "prlctl_provision"),
    ("unregister", ID, "forget an environment, keep its files", "prlctl_provision"),
    ("clone", ID, "copy a stopped environment", "prlctl_provision"),
    ("move", ID, "move an environment to another directory", "prlctl_provision"),
    ("migrate", "[SOURCE/]ID|NAME NODE[/NAME]", "move to another node", "prlctl_migrate"),
    ("start", ID, "start, or continue a paused one", "prlctl_lifecycle"),
    ("stop", ID, "shut down", "prlctl_lifecycle"),
    ("restart", ID, "shut down and start again", "prlctl_lifecycle"),
    ("reset", ID, "stop by force and start again", "prlctl_lifecycle"),
    ("pause", ID, "freeze in memory", "prlctl_lifecycle"),
    ("suspend", ID, "write the memory to disk and end it", "prlctl_lifecycle"),
    ("resume", ID, "continue a paused or suspended one", "prlctl_lifecycle"),
    ("mount", ID, "mount the root of a stopped environment", "prlctl_lifecycle"),
    ("umount", ID, "unmount the root", "prlctl_lifecycle"),
    ("snapshot", ID, "keep disks and configuration as they are now", "prlctl_snapshot"),
    ("snapshot-list", ID, "list snapshots", "prlctl_snapshot"),
    ("snapshot-switch", ID, "go back to a snapshot", "prlctl_snapshot"),
    ("snapshot-delete", ID, "delete a snapshot", "prlctl_snapshot"),
    ("backup", ID, "back up, running or not", "prlctl_backup"),
    ("backup-list", "[ID|NAME]", "list backups", "prlctl_backup"),
    ("backup-delete", "[ID|NAME]", "delete backups", "prlctl_backup"),
    ("backup-verify", "[ID|NAME]", "read backups and tell what is damaged", "prlctl_backup"),
    ("backup-mount", "", "show the files of a backup, read-only", "prlctl_backup"),
    ("backup-umount", "", "take away what backup-mount made", "prlctl_backup"),
    ("restore", "[ID|NAME]", "bring back from a backup", "prlctl_backup"),
    ("convert", ID, "copy the disk of a stopped container to another layout", "prlctl_snapshot"),
    ("status", ID, "print one line: exists or not, state", "prlctl_lifecycle"),
    ("set", ID, "change parameters", "prlctl_set"),
    ("list", "[ID|NAME...]", "list environments", "prlctl_list"),
    ("statistics", "[ID|NAME]", "print performance counters", "prlctl_report"),
    ("monitor", "", "print events as they happen", "prlctl_report"),
    ("problem-report", "[ID|NAME]", "write a report for the developers to stdout", "prlctl_report"),
    ("exec", f"{ID} COMMAND...", "run a command inside", "prlctl_session"),
    ("enter", ID, "open a root shell inside", "prlctl_session"),
    ("console", ID, "attach to the console", "prlctl_session"),
    ("capture,screenshot", ID, "take a picture of a VM's screen", "prlctl_machine"),
    ("send-key-event", ID, "press keys of a VM", "prlctl_machine"),
)

# Verbs of the original that this version does not have yet: they answer clearly and do nothing.
LATER = (
    "reinstall",
    *("installtools", "reset-uptime", "ct2vm", "change-sid", "update-qemu", "auth", "internal"),
)
INSTEAD = {
    "installtools": "The tools are a package of the guest here: install qemu-guest-agent inside.",
}

GLOBAL: tuple[OptionRow, ...] = (
    ("-l,--login", "[USER@]SERVER", "the node to work on; only this node is possible"),
    ("-p,--read-passwd", "+FILE", "accepted, no effect: the local node asks for no password"),
    ("-v,--verbose", "LEVEL", "accepted, no effect"),
    ("--timeout", "SECONDS", "wait so long for another operation on the environment to end"),
    ("--compat", "", "print unknown columns of list as -"),
    ("--debug", "", "print the traceback of an error"),
)

LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1", "local")


def main(argv: Sequence[str]) -> int:
    """Run prlctl with the words after the program's name; return the exit code."""
    return run("prlctl", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Find the verb of ARGV and run it."""
    if not argv or (_asks(argv, "--help") and _verb_name(argv[0]) != "exec"):
        from pyvz.cli.usage import prlctl_usage  # noqa: PLC0415

        sys.stdout.write(prlctl_usage())
        return 0 if argv else 1
    if argv[0] in {"--version", "-V"}:
        sys.stdout.write(f"prlctl version {VERSION}\n")
        return 0
    row = find(argv[0])
    module = load(row)
    verb = row[0].split(",")[0]
    args = parse(module, verb, argv[1:])
    check_login(args)
    timeout = args.number("timeout", 0) if args.has("timeout") else None
    with Server("prlctl", timeout=timeout) as server:
        code: int = getattr(module, verb.replace("-", "_") + "_")(args, server)
    return code


def _asks(argv: list[str], word: str) -> bool:
    return word in argv[: argv.index("--")] if "--" in argv else word in argv


def _verb_name(word: str) -> str:
    return next((row[0].split(",")[0] for row in VERBS if word in row[0].split(",")), "")


def find(word: str) -> VerbRow:
    """Return the row of a verb.  Raises UsageError, or Unsupported for a verb of later versions."""
    for row in VERBS:
        if word in row[0].split(","):
            return row
    if word in LATER:
        hint = INSTEAD.get(word, "Nothing was changed.")
        raise Unsupported(f"prlctl {word} is not supported yet by this version", hint=hint)
    raise UsageError(f"Unrecognized action: {word}", hint="prlctl --help lists the actions.")


def load(row: VerbRow) -> ModuleType:
    """Import the module of a verb's row."""
    module: ModuleType = __import__("pyvz.cli." + row[3], fromlist=["OPTIONS"])
    return module


def parse(module: ModuleType, verb: str, argv: list[str]) -> Arguments:
    """Parse the words after the verb."""
    rows = (*module.OPTIONS.get(verb, ()), *GLOBAL)
    if verb != "exec":
        return arguments.parse(rows, argv)
    # exec ID [--without-shell] COMMAND...: our options end where the command begins.
    at = next((i for i, word in enumerate(argv) if not word.startswith("-")), len(argv))
    before = arguments.parse(rows, argv[:at])
    after = arguments.parse(rows, argv[at + 1 :], words_end_options=True)
    after.options = before.options + after.options
    after.words = argv[at : at + 1] + after.words
    return after


def check_login(args: Arguments) -> None:
    """Raise DaemonUnreachable when -l names another machine."""
    login = args.value("login")
    if login is None:
        return
    server = login.rpartition("@")[2].lower()
    host = server if server.startswith("[") or server.count(":") > 1 else server.partition(":")[0]
    host = host.partition("]")[0] + "]" if host.startswith("[") else host
    import os  # noqa: PLC0415

    if host not in LOCAL and host != os.uname().nodename.lower():
        raise DaemonUnreachable(
            f"Unable to connect to {server}: only the local node can be managed",
            hint="Log in to that node (ssh) and run prlctl there.",
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
