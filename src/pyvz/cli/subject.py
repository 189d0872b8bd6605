"""The environment that a command line names: what it is, in the words that the tools print."""

from __future__ import annotations

import sys

from pyvz.cli.program import failed
from pyvz.errors import EnvironmentNotFound, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvz.cli.server import Server


class Subject:
    """An environment as it was found: uuid, kind ("CT" or "VM") and status."""

    def __init__(self, uuid: str, kind: str, status: str) -> None:
        self.uuid = uuid
        self.kind = kind
        self.status = status


def find(server: Server, ref: str) -> Subject:
    """Return the environment that REF names.

    Raises EnvironmentNotFound worded as the original does, whatever the environment's kind.
    """
    try:
        reply = server.ask("Environment.Status", ref=ref)
    except EnvironmentNotFound as error:
        raise unknown(ref) from error
    except VZError as error:
        raise failed("get VM config", error) from error
    if not reply["exists"]:
        raise unknown(ref)
    return Subject(str(reply["uuid"]), str(reply["kind"]).upper(), str(reply["status"]))


def unknown(ref: str) -> EnvironmentNotFound:
    """Return the error for a REF that nothing answers to."""
    return EnvironmentNotFound(
        f"Failed to get VM config: The virtual environment '{ref}' could not be found.",
        hint="prlctl list -a shows what there is.",
    )


def say(text: str) -> None:
    """Print a line of what is going on, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def act(
    server: Server, subject: Subject, words: tuple[str, str, str], method: str, **parameters: Any
) -> dict[str, Any]:
    """Say what begins, run the long METHOD on the subject, say what was done; return its result.

    words: ("Starting", "start", "started").
    """
    doing, verb, done = words
    say(f"{doing} the {subject.kind}...")
    try:
        result = server.run(method, ref=subject.uuid, **parameters)
    except VZError as error:
        raise failed(f"{verb} the {subject.kind}", error) from error
    say(f"The {subject.kind} has been {done}")
    return result
