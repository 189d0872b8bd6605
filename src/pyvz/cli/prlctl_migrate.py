"""prlctl: migrate.  Texts as in prlctl 7."""

from __future__ import annotations

from pyvz.cli.program import failed
from pyvz.cli.subject import find, say
from pyvz.cli.vzmigrate import parameters_of, summary, warn
from pyvz.errors import UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "migrate": (
        ("--dst,--location", "PATH", "parent directory of its private area on the other node"),
        ("--keep-src,--clone", "", "it stays here, a copy of it goes there (it has to be stopped)"),
        ("--remove-src", "", "remove its files here; else those of a CT stay as *.migrated"),
        ("--changesid", "", "with --clone, for VMs; accepted, no effect"),
        ("--no-compression", "", "do not compress"),
        ("--ssh", "OPTIONS", "options for ssh, in one word"),
        ("-f,--force", "", "skip the checks of the other node"),
        (
            "--post-copy",
            "",
            "a running one goes on there at once, and its memory follows. When the "
            "connection breaks in that time it is started anew there, as after a power cut",
        ),
        ("--offline", "", "stop a running one for the last part, start it there"),
        ("--nonsharedfs", "", "copy the files, also when both nodes see the same ones"),
        ("--no-tunnel", "", "accepted, no effect: all goes through one ssh connection"),
        ("--securitylevel", "low|normal|high", "accepted, no effect: all is encrypted"),
        ("-s,--sessionid", "ID", "accepted, no effect"),
        ("--switch-template", "", "for VMs; accepted, no effect"),
        ("--ignore-existing-bundle", "", "accepted, no effect"),
    ),
}


def migrate_(args: Arguments, server: Server) -> int:
    """Move an environment to another node, or fetch it from there."""
    if len(args.words) < 2:
        raise UsageError("The environment or the destination is not specified")
    args.no_more_words(2)
    if args.has("keep-src") and args.has("remove-src"):
        raise UsageError("Unable to simultaneously use --clone and --remove-src")
    source, ref = _split(args.words[0], last=True)
    target, name = _split(args.words[1], last=False)
    parameters = parameters_of(args) | {"name": name or None, "private": _private(args)}
    parameters["remove"] = args.has("remove-src")
    parameters["ignore"] = ["all"] if args.has("force") else []
    kind = "CT"
    if source:
        if target not in {"localhost", "127.0.0.1", "::1"}:
            raise UsageError(
                f"From {source} it can only be fetched to this node",
                hint=f"prlctl migrate {source}/{ref} localhost; or log in there and migrate it.",
            )
        parameters |= {"ref": ref, "target": target, "source": source}
        # Whether it runs is known there; one that does not goes as it is.
        parameters["online"] = not args.has("offline") and not args.has("keep-src")
    else:
        subject = find(server, ref)
        kind = subject.kind
        running = subject.status in {"running", "paused"}
        parameters |= {"ref": subject.uuid, "target": target}
        parameters["online"] = running and not args.has("offline") and not args.has("keep-src")
    say(f"Migrate the {kind} {ref} on {target} ({parameters['name'] or ''})")
    try:
        result: dict[str, Any] = server.run("Migration.Migrate", **parameters)
    except VZError as error:
        raise failed(f"migrate the {kind}", error) from error
    say(f"The {kind} has been successfully migrated {summary(result)}.")
    warn(result)
    return 0


def _split(text: str, *, last: bool) -> tuple[str, str]:
    """Return (node, environment) of NODE/ENVIRONMENT; one of them may be empty."""
    head, slash, tail = text.rpartition("/") if last else text.partition("/")
    if not slash:
        return ("", text) if last else (text, "")
    return head, tail


def _private(args: Arguments) -> str | None:
    path = args.value("dst")
    if path is None:
        return None
    if not path.startswith("/"):
        raise UsageError(
            f"An incorrect value for --dst is specified; relative path '{path}' is not allowed."
        )
    return f"{path.rstrip('/')}/$VEID"
