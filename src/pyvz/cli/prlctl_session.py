"""prlctl: exec, enter, console."""

from __future__ import annotations

from pyvz.cli import session, terminal
from pyvz.cli.program import failed
from pyvz.cli.subject import find, say
from pyvz.errors import UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "exec": (("--without-shell", "", "run the command itself, not through a shell"),),
}


def exec_(args: Arguments, server: Server) -> int:
    """Run a command inside; the exit code is the command's."""
    if len(args.words) < 2:
        raise UsageError("Incorrect exec command", hint="prlctl exec ID|NAME COMMAND...")
    ref, *words = args.words
    argv = words if args.has("without-shell") else session.shell_command(words)
    subject = find(server, ref)
    try:
        return session.execute(server, subject.uuid, argv)
    except VZError as error:
        raise failed(f"execute the command in the {subject.kind}", error) from error


def enter_(args: Arguments, server: Server) -> int:
    """Open a root shell inside."""
    subject = find(server, args.word("The ID or name"))
    try:
        return open_shell(server, subject.uuid, f"{subject.kind} {subject.uuid}")
    except VZError as error:
        raise failed(f"enter the {subject.kind}", error) from error


def open_shell(server: Server, uuid: str, shown: str) -> int:
    """Open a shell, at a terminal where we have one; say so as vzctl does."""
    if not terminal.is_terminal():
        return session.execute(server, uuid, session.login_shell(interactive=False))
    say(f"entered into {shown}")
    try:
        return session.enter(server, uuid, session.login_shell(interactive=True))
    finally:
        say(f"\rexited from {shown}")


def console_(args: Arguments, server: Server) -> int:
    """Attach to the console."""
    subject = find(server, args.word("The ID or name"))
    try:
        return open_console(server, subject.uuid, f"{subject.kind} {subject.uuid}", 1)
    except VZError as error:
        raise failed(f"attach to the console of the {subject.kind}", error) from error


def open_console(server: Server, uuid: str, shown: str, number: int) -> int:
    """Attach to the console and tell how to leave it."""
    from os import isatty  # noqa: PLC0415

    if isatty(0):
        say(f"Attached to {shown} tty{number} (type Enter ESC . to detach)")
    code = session.console(server, uuid)
    if isatty(0):
        say(f"\r\nDetached from {shown}")
    return code
