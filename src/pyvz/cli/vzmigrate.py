"""vzmigrate: move containers to another node.  Options and exit codes of vzmigrate 7."""

from __future__ import annotations

import os
import sys

from pyvz.cli import arguments
from pyvz.cli.exitcodes import exit_code
from pyvz.cli.program import run, tell
from pyvz.cli.server import Server
from pyvz.errors import Cancelled, PermissionDenied, UsageError, VZError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow

OPTIONS: tuple[OptionRow, ...] = (
    ("-s,--nostart", "", "do not start it on the other node, although it ran here"),
    ("-r,--remove-area", "yes|no", "remove its files here; no (default): keep them as *.migrated"),
    ("-f,--nodeps", "[=CHECK,...]", "skip all checks of the other node, or those named: cpu_check, "
     "disk_space, technologies, memory, bindmount, license, rate"),
    ("--online", "", "move it while it runs; else it is stopped for the last part"),
    ("--post-copy", "", "with --online: it goes on there at once, and its memory follows. When the "
     "connection breaks in that time it is started anew there, as after a power cut"),
    ("--keep-src,--clone", "", "it stays here, a copy of it goes there (it has to be stopped)"),
    ("--new-id", "ID", "its id there; one container only"),
    ("--new-name", "NAME", "its name there; one container only"),
    ("--new-private", "PATH", "its private area there; $VEID stands for its id"),
    ("--new-root", "PATH", "accepted, no effect: the other node decides"),
    ("--nonsharedfs", "", "copy the files, also when both nodes see the same ones"),
    ("--ssh", "OPTIONS", "options for ssh, in one word: --ssh=\"-p 2222 -i /root/key\""),
    ("--ssh-cipher", "CIPHER", "cipher of the ssh connection"),
    ("-t,--timeout", "SECONDS", "take a connection that is silent for so long for broken (30)"),
    ("--compress", "", "compress (the default; what does not shrink is sent as it is)"),
    ("--no-compression", "", "do not compress"),
    ("--dry-run", "", "only check whether it could be done"),
    ("--json", "", "print progress and result as JSON, one object a line"),
    ("--settle", "here|there", "for a container in doubt whose other node is gone for ever: where "
     "it is"),
    ("--keep-dst", "", "accepted, no effect: what is not complete never stays"),
    ("--keep-images", "", "accepted, no effect"),
    ("--keeper", "[=ID]", "accepted, no effect"),
    ("--noiter", "", "with --online: send no memory while it runs (no rounds of pre-copy)"),
    ("--readonly", "", "accepted, no effect"),
    ("--require-realtime", "", "the same as --online"),
    ("-W,--whole-file", "", "accepted, no effect"),
    ("-v,--verbose", "", "say what is going on"),
    ("-h,--help", "", "print this text"),
    ("--debug", "", "print the traceback of an error"),
)  # fmt: skip

DRY_RUN_CODE = 0


def main(argv: Sequence[str]) -> int:
    """Run vzmigrate with the words after the program's name; return the exit code."""
    return run("vzmigrate", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Parse ARGV and move what it names."""
    if argv == ["--version"]:
        sys.stdout.write(f"vzmigrate version {VERSION}\n")
        return 0
    args = arguments.parse(OPTIONS, _optional(argv))
    if args.has("help") or not argv:
        from pyvz.cli.usage import vzmigrate_usage  # noqa: PLC0415

        sys.stdout.write(vzmigrate_usage())
        return 0 if argv else 1
    if os.geteuid() != 0:
        raise PermissionDenied("This program can be run by root only.")
    with Server("vzmigrate", quiet=args.has("json")) as server:
        if args.has("settle"):
            return _settle(args, server)
        if len(args.words) < 2:
            raise UsageError("Neither a node nor a container is named" if not args.words else
                             "No container is named")  # fmt: skip
        target, *names = args.words
        if len(names) > 1 and any(args.has(f"new-{each}") for each in ("id", "name", "private")):
            raise UsageError("--new-id, --new-name and --new-private are for one container only")
        return _all(args, server, target, names)


def _optional(argv: list[str]) -> list[str]:
    """Give options whose value may be missing an empty one: -f means --nodeps=all."""
    found = []
    for word in argv:
        if word in {"-f", "--nodeps"}:
            found.append("--nodeps=all")
        elif word.startswith("-f") and len(word) > 2 and not word.startswith("--"):
            found.append("--nodeps=" + word[2:].lstrip("="))
        elif word == "--keeper":
            found.append("--keeper=")
        else:
            found.append(word)
    return found


def _settle(args: Arguments, server: Server) -> int:
    where = args.value("settle")
    if where not in {"here", "there"}:
        raise UsageError("--settle takes 'here' or 'there'")
    server.change("Migration.Settle", ref=args.word("The container"), here=where == "here")
    return 0


def _all(args: Arguments, server: Server, target: str, names: list[str]) -> int:
    """Move every container, also after one that fails, but none after one that was called off;
    return the last failure's code.
    """
    code = 0
    for each in names:
        ref, new_id, private = _parts(each)
        try:
            _one(args, server, target, (ref, new_id, private))
        except VZError as error:
            tell(error, f"Failed to migrate {ref}: ")
            code = exit_code("vzmigrate", error)
            if isinstance(error, Cancelled):
                break
    return code


def _parts(text: str) -> tuple[str, str | None, str | None]:
    """Return (container, its id there, its private area there) of CT[:ID[:PRIVATE[:ROOT]]]."""
    ref, _, rest = text.partition(":")
    new_id, _, rest = rest.partition(":")
    return ref, new_id or None, rest.partition(":")[0] or None


def _one(
    args: Arguments, server: Server, target: str, what: tuple[str, str | None, str | None]
) -> None:
    ref, new_id, private = what
    parameters = parameters_of(args)
    parameters |= {
        "ref": ref,
        "target": target,
        "uuid": args.value("new-id") or new_id,
        "name": args.value("new-name"),
        "private": args.value("new-private") or private,
        "dry_run": args.has("dry-run"),
    }
    if not args.has("json"):
        _say(f"Migrating {ref} to {target}...")
        result = server.run("Migration.Migrate", **parameters)
        _tell(ref, result, dry=args.has("dry-run"))
        if args.has("verbose"):
            _tell_more(result)
        return
    result = server.run_telling("Migration.Migrate", _print, **parameters)
    _print({"result": result})


def parameters_of(args: Arguments) -> dict[str, Any]:
    """Return the parameters of the call that both vzmigrate and prlctl migrate have."""
    ssh = args.value("ssh") or ""
    if args.value("ssh-cipher"):
        ssh += f" -c {args.value('ssh-cipher')}"
    ignore = (args.value("nodeps") or "").split(",") if args.has("nodeps") else []
    remove = args.value("remove-area", "no")
    if remove not in {"yes", "no"}:
        raise UsageError(f"An incorrect value '{remove}' for --remove-area: use yes or no")
    lazy = args.has("post-copy")
    return {
        "online": args.has("online") or args.has("require-realtime") or lazy,
        "post_copy": lazy,
        "memory_rounds": not args.has("noiter"),
        "clone": args.has("keep-src"),
        "remove": remove == "yes",
        "start": not args.has("nostart"),
        "nonshared": args.has("nonsharedfs"),
        "ignore": [word for word in ignore if word],
        "ssh": ssh.strip() or None,
        "silence": float(args.number("timeout", 30)),
        "compress": not args.has("no-compression"),
    }


def _tell(ref: str, result: dict[str, Any], *, dry: bool) -> None:
    if dry:
        _say(f"{ref} can be migrated to {result['host']}.")
        return
    _say(f"{ref} has been migrated to {result['host']} {summary(result)}")
    warn(result)


def _tell_more(result: dict[str, Any]) -> None:
    """Print what is of interest with --verbose: every part, and the rounds of memory."""
    for phase in result["phases"]:
        _say(f"  {phase['seconds']:8.2f} s  {phase['stage']}")
    if result["memory_rounds"]:
        _say(f"  pages in rounds while it ran: {', '.join(map(str, result['memory_rounds']))}")
    if result["precopy"]:
        _say(f"  no rounds of memory while it ran: {result['precopy']}")


def summary(result: dict[str, Any]) -> str:
    """Return how long it took and what went over the wire."""
    words = f"in {result['seconds']:.1f} s, {result['sent'] / (1 << 20):.1f} MiB sent"
    if result["still"]:
        words += f", it stood still for {result['still']:.2f} s"
    return words


def warn(result: dict[str, Any]) -> None:
    """Say on stderr what went wrong after it was taken over."""
    if result["problem"]:
        sys.stderr.write(f"It is on {result['host']} now, but: {result['problem']}\n")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _print(value: dict[str, Any]) -> None:
    import json  # noqa: PLC0415  only for --json

    _say(json.dumps(value))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
