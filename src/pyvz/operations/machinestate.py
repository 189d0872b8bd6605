"""The saved state of a virtual machine: its memory in a file of its home, as QEMU migrates it.

    <home>/dump/Dump.json    how the machine was put together (Layout)
    <home>/dump/Dump         the memory; with it the machine is suspended
    <home>/dump/Dump.new     being written

QEMU writes and reads it through a descriptor.  The rename of Dump commits a suspension.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from pyvz.errors import CheckpointError, RestoreError, VZError
from pyvz.linux.file import fsync_directory, read_text_limited, write_atomic
from pyvz.model.environment import Environment
from pyvz.model.task import Progress
from pyvz.operations import machineusb
from pyvz.vm import plug
from pyvz.vm.monitor import Monitor
from pyvz.vm.spec import Layout

log = logging.getLogger(__name__)

STALL = 120.0  # seconds without a byte more, after which it is given up
_NAME = "state"
_FAST = 1 << 40  # bytes per second: no limit for a file
_PAUSE = 0.05


def path(env: Environment) -> Path:
    """Return the file with the memory."""
    return env.home / "dump" / "Dump"


def _layout_path(env: Environment) -> Path:
    return env.home / "dump" / "Dump.json"


def layout(env: Environment) -> Layout:
    """Return how the suspended machine was put together; raises RestoreError."""
    try:
        return Layout.from_json(json.loads(read_text_limited(_layout_path(env))))
    except (OSError, ValueError) as error:
        raise RestoreError(
            f"The saved state of {env.name} cannot be understood: {error}",
            hint="prlctl stop ID gives it up; the disks stay as they are.",
        ) from error


def keep_layout(env: Environment, made: Layout) -> None:
    """Write down how the suspended machine is put together."""
    write_atomic(_layout_path(env), json.dumps(made._asdict()), 0o600)


def save(env: Environment, monitor: Monitor, made: Layout, progress: Progress) -> None:
    """Stop the machine and write its state; afterwards it is suspended, and QEMU may end.

    Raises CheckpointError, NoSpace; then the machine goes on and nothing is left, but it has no
    USB devices of the node any more: the caller puts them in again.
    """
    target = path(env)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    fresh = target.with_name("Dump.new")
    ran = monitor.state == "running"
    try:
        monitor.execute("stop")
        machineusb.take_out(monitor)
        write(fresh, monitor, progress)
        keep_layout(env, made)
        fresh.rename(target)
        fsync_directory(target.parent)
    except BaseException as error:
        give_up(env, monitor, ran=ran)
        if isinstance(error, VZError | OSError):
            goes = "" if monitor.ended.is_set() else "; it goes on"
            raise CheckpointError(
                f"The state of {env.name} could not be written{goes}",
                details=str(error),
            ) from error
        raise


def write(file: Path, monitor: Monitor, progress: Progress) -> None:
    """Write the memory of a machine that stands still into FILE.

    Raises CheckpointError: the transfer may go on then, see `give_up`.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write(monitor, descriptor, progress)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_up(env: Environment, monitor: Monitor, *, ran: bool = True) -> None:
    """Let a machine go on whose state was not written to its end; one that was paused stays so."""
    call_off(monitor)
    if ran:
        with suppress(VZError):
            monitor.execute("cont")
    path(env).with_name("Dump.new").unlink(missing_ok=True)


def call_off(monitor: Monitor) -> None:
    """End a transfer of the memory that may be under way."""
    with suppress(VZError):
        monitor.execute("migrate_cancel")


def _write(monitor: Monitor, descriptor: int, progress: Progress) -> None:
    monitor.execute("migrate-set-parameters", {"max-bandwidth": _FAST})
    monitor.give(descriptor, _NAME)
    monitor.execute("migrate", {"uri": f"fd:{_NAME}"})
    await_migration(monitor, progress)


def put_in(env: Environment, monitor: Monitor, made: Layout) -> None:
    """Put the saved state into a QEMU that waits for it; raises RestoreError."""
    read(env, path(env), monitor, made)


def read(env: Environment, file: Path, monitor: Monitor, made: Layout) -> None:
    """Put the state in FILE into a QEMU that waits for it; raises RestoreError."""
    plug_in(monitor, made)
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        monitor.give(descriptor, _NAME)
        monitor.execute("migrate-incoming", {"uri": f"fd:{_NAME}"})
        await_migration(monitor, None)
    except (VZError, OSError) as error:
        raise RestoreError(
            f"The saved state of {env.name} could not be put back; it is kept",
            details=str(error),
        ) from error
    finally:
        os.close(descriptor)


def plug_in(monitor: Monitor, made: Layout) -> None:
    """Plug in what was plugged in when the state was saved."""
    if made.plugged:
        plug.add_cpus(monitor, made.cpus + made.plugged)
    for number, size in enumerate(made.dimms):
        plug.add_memory(monitor, number, size, hugepages=made.hugepages)


def await_migration(monitor: Monitor, progress: Progress | None) -> None:
    """Wait for the end of a migration; raises CheckpointError with QEMU's words, or on a stall."""
    last, moved = -1, time.monotonic()
    while True:
        answer = monitor.execute("query-migrate")
        status = answer.get("status", "none")
        if status == "completed":
            return
        if status in {"failed", "cancelled"}:
            raise CheckpointError(answer.get("error-desc") or f"QEMU: the transfer {status}")
        ram = answer.get("ram", {})
        done = int(ram.get("transferred", 0))
        if done != last:
            last, moved = done, time.monotonic()
        elif time.monotonic() - moved > STALL:
            raise CheckpointError(f"QEMU moved nothing for {STALL:g} s")
        if progress is not None and ram.get("total"):
            progress.advance(done, int(ram["total"]), unit="bytes")
        time.sleep(_PAUSE)


def forget(env: Environment) -> None:
    """Remove the saved state; idempotent."""
    for file in (path(env), _layout_path(env), path(env).with_name("Dump.new")):
        file.unlink(missing_ok=True)
