"""vzctl: suspend (chkpnt) and resume (restore), whole or in their parts.

The parts are those of the original (libvzctl, chkpnt.c): --suspend halts in memory, --dump writes
the memory and leaves it halted, --kill ends it, --resume lets it go on; --undump brings it back
halted.
"""

from __future__ import annotations

import os

from pyvz.cli.vzctl import container, tell
from pyvz.errors import FileMissing, InvalidState, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server
    from pyvz.cli.vzctl import Container

_DUMPFILE: OptionRow = ("--dumpfile", "PATH", "the memory is there, not in the private area")
_FLAGS: tuple[OptionRow, ...] = (
    ("--flags", "NUMBER", "accepted, no effect"),
    ("--context", "NUMBER", "accepted, no effect"),
    ("--keep_pages", "", "accepted, no effect: memory is always in the dump"),
    ("--create-devmap", "", "accepted, no effect"),
    ("--stop-tracker", "", "accepted, no effect"),
)

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "suspend": (
        _DUMPFILE,
        ("--suspend", "", "only halt it in memory"),
        ("--dump", "", "write its memory; it stays, halted"),
        ("--kill", "", "end what is halted; what --dump wrote makes it suspended"),
        ("--resume,--unfreeze", "", "let what is halted go on; what --dump wrote is void"),
        *_FLAGS,
    ),
    "resume": (
        _DUMPFILE,
        ("--undump", "", "bring it back, and leave it halted"),
        ("--resume", "", "let what is halted go on"),
        ("--kill", "", "end what is halted"),
        ("--skip-fsck", "", "accepted, no effect: the disk must be as it was"),
        *_FLAGS,
    ),
}


def suspend_(args: Arguments, server: Server) -> int:
    """Write the memory to disk and end it."""
    found = container(server, args.word("ctid"))
    stage = _stage(args, ("suspend", "dump", "kill", "resume"))
    if stage == "suspend":
        server.change("Environment.Pause", ref=found.uuid)
        tell(args, "The Container has been successfully paused")
    elif stage in {"kill", "resume"}:
        _halted(args, server, found, stage)
    else:
        tell(args, "Setting up checkpoint...")
        server.run("Checkpoint.Suspend", ref=found.uuid, file=_file(args), stay=stage == "dump")
        tell(args, "Checkpointing completed successfully")
    return 0


def resume_(args: Arguments, server: Server) -> int:
    """Bring it back, or let a paused one go on."""
    found = container(server, args.word("ctid"))
    stage = _stage(args, ("undump", "resume", "kill"))
    path = _file(args)
    if stage == "kill" or (stage == "resume" and found.status == "paused"):
        _halted(args, server, found, stage)
    elif found.status == "paused" and stage is None and path is None:
        tell(args, "Unpause the Container")
        server.run("Environment.Resume", ref=found.uuid)
        tell(args, "The Container has been successfully unpaused")
    else:
        tell(args, "Restoring the Container ...")
        _restore(server, found, path, frozen=stage == "undump")
        tell(args, "Container is mounted")
        tell(args, "Restoring completed successfully")
    return 0


def _restore(server: Server, found: Container, path: str | None, *, frozen: bool) -> None:
    if path is not None:
        if not os.path.exists(path):
            raise FileMissing(f"There is no dump file {path}")
        server.run("Checkpoint.Restore", ref=found.uuid, file=path, frozen=frozen)
        return
    server.run("Environment.Resume", ref=found.uuid)
    if frozen:
        server.change("Environment.Pause", ref=found.uuid)


def _halted(args: Arguments, server: Server, found: Container, stage: str) -> None:
    """End a container that stands still in memory, or let it go on."""
    if found.status != "paused":
        raise InvalidState("The Container is not halted in memory")
    if stage == "resume":
        server.run("Environment.Resume", ref=found.uuid)
        tell(args, "The Container has been successfully unpaused")
        return
    server.run(
        "Environment.Stop", ref=found.uuid, kill=True, noforce=False, force=True, skip_umount=False
    )
    tell(args, "Container was stopped")


def _stage(args: Arguments, names: tuple[str, ...]) -> str | None:
    """Return the one part that was asked for; None for all of it."""
    given = [name for name in names if args.has(name)]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} cannot be given together")
    return given[0] if given else None


def _file(args: Arguments) -> str | None:
    path = args.value("dumpfile")
    if path is None:
        return None
    if not path:
        raise UsageError("--dumpfile needs a path")
    return os.path.abspath(path)
