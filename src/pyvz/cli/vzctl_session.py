"""vzctl: exec, exec2, exec3, enter, console, runscript, monitor."""

from __future__ import annotations

import os
import sys

from pyvz.cli import session
from pyvz.cli.prlctl_report import event_line
from pyvz.cli.prlctl_session import open_console, open_shell
from pyvz.cli.program import tell as tell_error
from pyvz.cli.vzctl import container
from pyvz.errors import BadValue, NotFound, Unsupported, UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "enter": (("--exec", "COMMAND", "run this command instead of a shell"),),
    "console": (("-s,--start", "", "refused: the container's init starts its gettys"),),
}

COMMAND_FAILED = 8  # VZ_COMMAND_EXECUTION_ERROR
_ARGUMENT_MAX = 100_000  # below MAX_ARG_STRLEN (128 KiB)


def exec_(args: Arguments, server: Server) -> int:
    """Run a command; whatever goes wrong is 8 (vz.c: Exec)."""
    ref, argv = _command(args)
    try:
        code = session.execute(server, container(server, ref).uuid, argv)
    except (BadValue, NotFound):
        raise
    except VZError as error:
        tell_error(error)
        code = 1
    return COMMAND_FAILED if code else 0


def exec2_(args: Arguments, server: Server) -> int:
    """Run a command; the exit code is the command's."""
    ref, argv = _command(args)
    return session.execute(server, container(server, ref).uuid, argv)


def exec3_(args: Arguments, server: Server) -> int:
    """Run a command without a shell; the exit code is the command's."""
    ref, *argv = args.words
    if not argv:
        raise UsageError("No command to execute by vzctl exec")
    return session.execute(server, container(server, ref).uuid, argv)


def _command(args: Arguments) -> tuple[str, Sequence[str]]:
    ref, *words = args.words
    if not words:
        raise UsageError("No command to execute by vzctl exec")
    return ref, session.script_shell() if words == ["-"] else session.shell_command(words)


def enter_(args: Arguments, server: Server) -> int:
    """Open a root shell inside."""
    found = container(server, args.word("ctid"))
    command = args.value("exec")
    if command is not None:
        return session.execute(server, found.uuid, session.shell_command([command]))
    return open_shell(server, found.uuid, f"CT {found.shown}")


def console_(args: Arguments, server: Server) -> int:
    """Attach to the console."""
    args.no_more_words(2)
    ref, *numbers = args.words
    if args.has("start"):
        raise Unsupported("--start is not supported: the container's init starts its gettys")
    text = numbers[0] if numbers else "1"
    if not (text.isascii() and text.isdigit()):
        raise BadValue(f"Incorrect tty number '{text}' is specified")
    if int(text) > 2:
        raise Unsupported(f"There is no tty{text}: a container has its system console only")
    found = container(server, ref)
    return open_console(server, found.uuid, f"CT {found.shown}", 1)


def runscript_(args: Arguments, server: Server) -> int:
    """Run a script of the node inside; a stopped container is started minimally for it."""
    if len(args.words) != 2:
        raise UsageError("Invalid number of arguments", hint="vzctl runscript CTID|NAME FILE")
    ref, path = args.words
    found = container(server, ref)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except OSError as error:
        raise BadValue(f"Unable to open the script {path}: {error.strerror}") from error
    source = os.devnull
    argv = session.shell_command([text])
    if len(text) > _ARGUMENT_MAX or "\0" in text:
        source, argv = path, session.script_shell()
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(fd, 0)
    os.close(fd)
    return session.execute(server, found.uuid, argv, offline=True)


def monitor_(args: Arguments, server: Server) -> int:
    """Print the events of a container (0: of all) until Ctrl-C."""
    ref = args.word("ctid")
    uuid = "" if ref == "0" else container(server, ref).uuid
    try:
        for reply in server.connection.replies("Node.Events", replay=False):
            event = reply.get("event")
            if event and uuid in {"", event.get("uuid")}:
                sys.stdout.write(event_line(event))
                sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    return 0
