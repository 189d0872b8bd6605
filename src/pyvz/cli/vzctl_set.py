"""vzctl set."""

from __future__ import annotations

import sys

from pyvz.cli import options
from pyvz.cli.arguments import key_of
from pyvz.cli.vzctl import container, tell
from pyvz.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

_OWN: tuple[OptionRow, ...] = (
    ("--save", "", "also write the change to the configuration"),
    ("--setmode", "restart|ignore", "restart for what cannot change while running, or leave it"),
    ("--reset_ub", "", "accepted, no effect: limits are always those of the configuration"),
    ("--force", "", "accepted, no effect"),
)
_NOT_SENT = frozenset({"save", "setmode", "reset_ub", "force", "quiet", "debug", "timeout"})
_NOT_SENT |= {"verbose", "skipowner", "ignore-ha-cluster", "configure-timeout"}

_OWN_KEYS = frozenset(key_of(row) for row in _OWN)
OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "set": (*_OWN, *(row for row in options.VZCTL if key_of(row) not in _OWN_KEYS))
}
SET_NAME_ERROR = 137


def set_(args: Arguments, server: Server) -> int:
    """Change parameters of the running container, with --save for good."""
    found = container(server, args.word("ctid"))
    save = args.has("save")
    setmode = args.value("setmode")
    if setmode not in {None, "restart", "ignore"}:
        raise UsageError(f"Invalid value '{setmode}' for --setmode: use restart or ignore")
    if not save and setmode == "restart":
        raise UsageError("It is not allowed to use restart mode without --save")
    if not save and args.has("name"):
        sys.stderr.write("Unable to use the --name option without --save\n")
        return SET_NAME_ERROR
    given = [
        {"name": name, "value": value} for name, value in args.options if name not in _NOT_SENT
    ]
    reply = server.change(
        "Environment.Set",
        ref=found.uuid,
        dialect="vzctl",
        options=given,
        save=save,
        setmode=setmode,
    )
    for line in reply["echo"]:
        tell(args, line)
    if reply["restart_needed"]:
        names = ", ".join(reply["restart_needed"])
        sys.stderr.write(
            f"WARNING: Some of the parameters could not be applied to a running container: {names}."
            "\n\tPlease consider using --setmode option\n"
        )
    _saved(args, found.shown, save=save)
    return 0


def _saved(args: Arguments, shown: str, *, save: bool) -> None:
    if save:
        tell(args, f"Saved parameters for Container {shown}")
    elif not (args.has("userpasswd") or args.has("reset_ub")):
        tell(
            args,
            "WARNING: Changes are not saved and will be dropped on the next start."
            " Suspend or migrate operations may fail."
            " Use --save to save the settings in the configuration file.",
        )
