"""prlctl: capture, send-key-event."""

from __future__ import annotations

import os
import sys

from pyvz.cli.program import failed
from pyvz.cli.subject import find, say
from pyvz.errors import BadValue, Unsupported, UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "capture": (("-f,--file", "PATH", "where the picture goes (default: standard output)"),),
    "send-key-event": (
        ("-k,--key", "KEY", "name of the key: ret, a, f2, ctrl-alt-delete, ..."),
        ("-s,--scancode", "CODE", "number of the key instead"),
        ("-e,--event", "press|release", "only one of both"),
        ("-d,--delay", "MS", "accepted, no effect"),
    ),
}


def capture_(args: Arguments, server: Server) -> int:
    """Take a picture of the screen."""
    subject = find(server, args.word("The ID or name"))
    path = args.value("file")
    if subject.kind == "CT":
        raise Unsupported("Failed to capture the screen: a container has none")
    if path is not None:
        say("Capture the VM screen...")
    try:
        reply = server.ask("Machine.Capture", ref=subject.uuid)
    except VZError as error:
        raise failed("capture the VM screen", error) from error
    png = _decoded(reply["png"])
    if path is None:
        sys.stdout.buffer.write(png)
        return 0
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(png)
    except OSError as error:
        raise VZError(f"The picture cannot be written to {path}: {error.strerror}") from error
    say("The VM screen has been captured.")
    return 0


def _decoded(text: str) -> bytes:
    from binascii import a2b_base64  # noqa: PLC0415  only here

    return a2b_base64(text)


def send_key_event_(args: Arguments, server: Server) -> int:
    """Press keys."""
    subject = find(server, args.word("The ID or name"))
    key, code = args.value("key"), args.value("scancode")
    if (key is None) == (code is None):
        raise UsageError("Give either --key or --scancode")
    if code is not None and not code.isdigit():
        raise BadValue(f"An incorrect value '{code}' for --scancode is specified")
    try:
        server.change(
            "Machine.SendKey",
            ref=subject.uuid,
            key=key or "",
            event=args.value("event"),
            scancode=None if code is None else int(code),
        )
    except VZError as error:
        raise failed("send the key event", error) from error
    return 0
