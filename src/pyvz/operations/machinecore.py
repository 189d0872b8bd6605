"""The memory of a virtual machine's guest as a core file, for a debugger (crash, gdb, WinDbg).

QEMU writes it through a descriptor; the guest stands still meanwhile and then goes on.  The file
appears under its name when it is whole.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from pyvz.errors import Cancelled, NotFound, NotRunning, StorageError, Timeout, Unsupported, VZError
from pyvz.linux import file
from pyvz.model.environment import Environment, Kind
from pyvz.model.task import Progress
from pyvz.operations import backuplease, home, machine
from pyvz.operations.node import Node
from pyvz.vm.monitor import Monitor

FORMATS: Final = ("elf", "kdump-zlib", "kdump-lzo", "kdump-snappy", "win-dmp")
_DESCRIPTOR: Final = "core"
_POLL: Final = 0.1
_STALL: Final = 120.0  # seconds without progress, after which it is given up


def write(node: Node, ref: str, path: Path, form: str, progress: Progress) -> Environment:
    """Write the memory of a running machine to PATH in one of FORMATS; a file there is replaced.

    Raises Unsupported (a container, a format that this QEMU does not write), NotRunning, NoSpace,
    StorageError: nothing is there then.  QEMU cannot be stopped at it; called off, it ends first.
    """
    env = node.registry.resolve(ref)
    if env.kind != Kind.VM:
        raise Unsupported(
            f"{env.name} is a container: it has no memory of its own that a debugger could read",
            hint=f"Write its processes with prlctl exec {env.name} gcore PID, or suspend it.",
        )
    if not path.parent.is_dir():
        raise NotFound(f"There is no directory {path.parent}")
    with (
        backuplease.lease(node, env, "dump"),
        home.storage_errors(f"The memory of {env.name} could not be written"),
    ):
        machine.repair(node, env)
        if env.uuid not in node.machines.running():
            raise NotRunning(f"{env.name} is not running")
        monitor = node.machines.monitor(env.uuid)
        check_format(monitor, form)
        fresh = path.with_name(f"{path.name}.new")
        fresh.unlink(missing_ok=True)
        with ExitStack() as stack:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(fresh, flags, 0o600)
            stack.callback(os.close, descriptor)
            stack.callback(fresh.unlink, missing_ok=True)  # once it is renamed there is none
            progress.stage(f"Writing the memory of {env.name}")
            _dump(monitor, descriptor, form, progress)
            os.fsync(descriptor)
            fresh.rename(path)
        file.fsync_directory(path.parent)
    return env


def check_format(monitor: Monitor, form: str) -> None:
    """Raise Unsupported for a format that this QEMU does not write of this guest."""
    able = monitor.execute("query-dump-guest-memory-capability")["formats"]
    if form not in able:
        raise Unsupported(
            f"A core file of the format {form} cannot be written; of this guest: {', '.join(able)}"
        )


def _dump(monitor: Monitor, descriptor: int, form: str, progress: Progress) -> None:
    monitor.give(descriptor, _DESCRIPTOR)
    words = {"paging": False, "protocol": f"fd:{_DESCRIPTOR}", "detach": True, "format": form}
    monitor.execute("dump-guest-memory", words)
    called_off: VZError | None = None
    last, moved = -1, time.monotonic()
    while (told := monitor.execute("query-dump"))["status"] == "active":
        done, total = int(told["completed"]), int(told["total"])
        if done != last:
            last, moved = done, time.monotonic()
        elif time.monotonic() - moved > _STALL:
            raise Timeout(f"QEMU wrote nothing for {_STALL:g} s")
        if called_off is None:
            try:
                progress.advance(done, total)
            except Cancelled as error:
                called_off = error
        time.sleep(_POLL)
    if called_off is not None:
        raise called_off
    if told["status"] != "completed":
        raise StorageError(f"QEMU could not write the memory: {_why(monitor)}")


def _why(monitor: Monitor) -> str:
    told = monitor.recent("DUMP_COMPLETED", lambda data: "error" in data)
    return str(told["error"]) if told else "it does not say why"
