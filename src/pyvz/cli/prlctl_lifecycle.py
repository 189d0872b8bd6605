"""prlctl: start, stop and their kin.  Texts and options as in prlctl 7 (PrlVm.cpp)."""

from __future__ import annotations

from pyvz.cli.program import failed
from pyvz.cli.subject import Subject, act, find, say
from pyvz.errors import UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

_STOP: tuple[OptionRow, ...] = (
    ("-k,--kill,--fast", "", "do not ask the guest: end it at once"),
    ("--acpi", "", "shut a VM down through ACPI; the usual way for a container"),
    ("--force", "", "end it by force where the orderly way fails"),
    ("--noforce", "", "fail when it has not stopped in time, instead of ending it by force"),
)

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "start": (
        ("--wait", "", "return when the guest has finished booting"),
        ("--repair", "", "start into the repair mode: the disk of the container beside a helper"),
    ),
    "stop": _STOP,
    "mount": (
        ("-o,--options", "ro|rw", "read-only, or writable (default; not of a VM)"),
        ("--info", "", "print where it is mounted"),
    ),
    "umount": _STOP,
}


def start_(args: Arguments, server: Server) -> int:
    """Start; a paused environment goes on."""
    subject = find(server, args.word("The ID or name"))
    words = ("Starting", "start", "successfully started.")
    if subject.status == "paused":
        act(server, subject, words, "Environment.Resume")
        return 0
    act(
        server,
        subject,
        words,
        "Environment.Start",
        wait=args.has("wait"),
        repair=args.has("repair"),
        force=False,
        skip_fsck=False,
    )
    return 0


def stop_(args: Arguments, server: Server) -> int:
    """Stop; to stop one that does not run is a success."""
    subject = find(server, args.word("The ID or name"))
    say(f"Stopping the {subject.kind}...")
    kill = args.has("kill")
    if kill and args.has("noforce"):
        raise UsageError("Unable to simultaneously use --kill and --noforce")
    try:
        result = server.run(
            "Environment.Stop",
            ref=subject.uuid,
            kill=kill,
            noforce=args.has("noforce"),
            force=args.has("force"),
            skip_umount=False,
            acpi=args.has("acpi"),
        )
    except VZError as error:
        raise failed(f"stop the {subject.kind}", error) from error
    if result.get("how") == "killed":
        say(f"The {subject.kind} has been forcibly stopped")
    else:
        say(f"The {subject.kind} has been successfully stopped.")
    return 0


def restart_(args: Arguments, server: Server) -> int:
    """Shut down and start again."""
    subject = find(server, args.word("The ID or name"))
    words = ("Restarting", "restart", "successfully restarted.")
    act(server, subject, words, "Environment.Restart", wait=False)
    return 0


def reset_(args: Arguments, server: Server) -> int:
    """End by force and start again."""
    subject = find(server, args.word("The ID or name"))
    act(server, subject, ("Resetting", "reset", "successfully reset."), "Environment.Reset")
    return 0


def pause_(args: Arguments, server: Server) -> int:
    """Freeze in memory."""
    subject = find(server, args.word("The ID or name"))
    _short(server, subject, ("Pause", "pause", "successfully paused."), "Pause")
    return 0


def suspend_(args: Arguments, server: Server) -> int:
    """Write the memory to disk and end it."""
    subject = find(server, args.word("The ID or name"))
    words = ("Suspending", "suspend", "successfully suspended.")
    act(server, subject, words, "Checkpoint.Suspend")
    return 0


def resume_(args: Arguments, server: Server) -> int:
    """Continue a paused or suspended environment."""
    subject = find(server, args.word("The ID or name"))
    words = ("Resuming", "resume", "successfully resumed.")
    act(server, subject, words, "Environment.Resume")
    return 0


def mount_(args: Arguments, server: Server) -> int:
    """Mount the root, or tell where it is mounted."""
    subject = find(server, args.word("The ID or name"))
    mode = args.value("options")
    if mode not in {None, "ro", "rw"}:
        raise UsageError(f"An incorrect value '{mode}' for --options is specified")
    if args.has("info"):
        info = server.ask("Environment.List", refs=[subject.uuid], fields=["root"])
        # A container that runs has its root mounted; the disks of a machine only QEMU has then.
        states = {"mounted"} if subject.kind == "VM" else {"mounted", "running", "paused"}
        say(str(info["rows"][0]["root"]) if subject.status in states else "not mounted")
        return 0
    words = ("Mounting", "mount", "successfully mounted.")
    wanted = {} if mode is None else {"readonly": mode == "ro"}
    _short(server, subject, words, "Mount", **wanted)
    return 0


def umount_(args: Arguments, server: Server) -> int:
    """Unmount the root."""
    subject = find(server, args.word("The ID or name"))
    _short(server, subject, ("Unmounting", "unmount", "successfully unmounted."), "Umount")
    return 0


def status_(args: Arguments, server: Server) -> int:
    """Print "<CT|VM> <id as typed> exist <state>"."""
    ref = args.word("The ID or name")
    subject = find(server, ref)
    say(f"{subject.kind} {ref} exist {subject.status}")
    return 0


def _short(
    server: Server, subject: Subject, words: tuple[str, str, str], verb: str, **parameters: Any
) -> None:
    """Do what `act` does, for the methods that answer once."""
    say(f"{words[0]} the {subject.kind}...")
    try:
        server.change("Environment." + verb, ref=subject.uuid, **parameters)
    except VZError as error:
        raise failed(f"{words[1]} the {subject.kind}", error) from error
    say(f"The {subject.kind} has been {words[2]}")
