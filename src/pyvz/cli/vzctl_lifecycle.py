"""vzctl: start, stop and their kin.  Texts as in libvzctl 7."""

from __future__ import annotations

import sys

from pyvz.cli.vzctl import container, is_id, look, tell
from pyvz.errors import BadValue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server
    from pyvz.cli.vzctl import Container

_START: tuple[OptionRow, ...] = (
    ("--wait", "", "return when the container has finished booting"),
    ("--force", "", "also when it is marked DISABLED"),
    ("--skip-fsck", "", "do not check the file system first"),
    ("--skip_ve_setup", "", "accepted, no effect"),
    ("--repair", "", "start a shell instead of init"),
    ("--osrelease", "VERSION", "accepted, no effect: the kernel tells its own version"),
)
_STOP: tuple[OptionRow, ...] = (
    ("--fast", "", "do not ask init: end it at once"),
    ("--skip-umount", "", "leave the root mounted"),
    ("--force", "", "end it by force where the orderly way fails"),
)

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "start": _START,
    "stop": _STOP,
    "restart": (*_START, *(row for row in _STOP if row[0] != "--force")),
    "mount": (("--skip-fsck", "", "do not check the file system first"),),
}


def _named(args: Arguments, server: Server) -> Container:
    return container(server, args.word("ctid"))


def start_(args: Arguments, server: Server) -> int:
    """Start."""
    found = _named(args, server)
    tell(args, "Starting Container ...")
    _start(args, server, found)
    return 0


def _start(args: Arguments, server: Server, found: Container) -> None:
    server.run(
        "Environment.Start",
        ref=found.uuid,
        wait=args.has("wait"),
        repair=args.has("repair"),
        force=args.has("force"),
        skip_fsck=args.has("skip-fsck"),
    )
    tell(args, "Container is mounted")
    if args.has("wait"):
        tell(args, "Container was started")
    else:
        tell(args, "Container start in progress...")


def stop_(args: Arguments, server: Server) -> int:
    """Stop; one that does not run is told and no failure (libvzctl: vzctl_env_stop)."""
    found = _named(args, server)
    if found.status not in {"running", "paused", "starting", "stopping", "suspended"}:
        sys.stderr.write("Container is not running\n")
        return 0
    tell(args, "Stopping the Container ...")
    _stop(args, server, found)
    return 0


def _stop(args: Arguments, server: Server, found: Container) -> None:
    result = server.run(
        "Environment.Stop",
        ref=found.uuid,
        kill=args.has("fast"),
        noforce=False,
        force=args.has("force"),
        skip_umount=args.has("skip-umount"),
    )
    if result.get("how") == "killed" and not args.has("fast"):
        tell(args, "Forcibly stop the Container...")
    tell(args, "Container was stopped")
    if not args.has("skip-umount"):
        tell(args, "Container is unmounted")


def restart_(args: Arguments, server: Server) -> int:
    """Stop it where it runs, then start it."""
    found = _named(args, server)
    tell(args, "Restart the Container")
    plain = not (args.has("fast") or args.has("repair") or args.has("skip-fsck"))
    if plain and found.status == "running":
        server.run("Environment.Restart", ref=found.uuid, wait=args.has("wait"))
        tell(args, "Container start in progress...")
        return 0
    if found.status in {"running", "paused"}:
        _stop(args, server, found)
    _start(args, server, found)
    return 0


def pause_(args: Arguments, server: Server) -> int:
    """Freeze in memory."""
    found = _named(args, server)
    tell(args, "Pause the Container ...")
    server.change("Environment.Pause", ref=found.uuid)
    tell(args, "The Container has been successfully paused")
    return 0


def mount_(args: Arguments, server: Server) -> int:
    """Mount the root."""
    found = _named(args, server)
    server.change("Environment.Mount", ref=found.uuid, readonly=False)
    tell(args, "Container is mounted")
    return 0


def umount_(args: Arguments, server: Server) -> int:
    """Unmount the root."""
    found = _named(args, server)
    server.change("Environment.Umount", ref=found.uuid)
    tell(args, "Container is unmounted")
    return 0


def status_(args: Arguments, server: Server) -> int:
    """Print "VEID <id> exist|deleted mounted|unmounted running|paused|suspended|down"."""
    ref = args.word("ctid")
    found = look(server, ref)
    if found is None:
        if not is_id(ref):
            raise BadValue(f"Invalid ctid is specified: {ref}")
        sys.stdout.write(f"VEID {ref.strip('{}')} deleted unmounted down\n")
        return 0
    mounted = "mounted" if found.mounted else "unmounted"
    sys.stdout.write(f"VEID {found.shown} exist {mounted} {state_word(found.status)}\n")
    return 0


def state_word(status: str) -> str:
    """Return vzctl's word for a status."""
    if status in {"paused", "suspended"}:
        return status
    return "running" if status in {"running", "stopping", "suspending", "pausing"} else "down"
