"""The drives of a running machine: plugged in with everything they need, and taken out."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

from pyvz.errors import SetError
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.operations import machinedrives, machinekeys
from pyvz.operations.node import Node
from pyvz.vm import plug
from pyvz.vm.monitor import Monitor

HOT: Final = frozenset({"scsi", "virtio"})  # on these buses disks come and go while it runs


def plug_in(node: Node, env: Environment, monitor: Monitor, drive: Drive, chipset: str) -> None:
    """Plug a drive in; raises FileMissing, StorageError, MonitorError: nothing is there then."""
    with ExitStack() as opened:
        # No place in the boot order: QEMU gives none away twice, and the order counts at the start.
        spec, descriptors = machinedrives.open_one(env, drive, opened)
        if descriptors:
            spec = spec._replace(file=monitor.add_file(descriptors[0]))
        if len(descriptors) > 1:
            spec = spec._replace(base=monitor.add_file(descriptors[1]))
        machinekeys.give(node, monitor, drive)
        try:
            plug.add_drive(monitor, spec, chipset)
        except BaseException:
            machinekeys.take_back(monitor, drive)
            raise


def take_out(env: Environment, monitor: Monitor, drive: Drive) -> None:
    """Take a drive out; raises SetError when its bus cannot, or the guest keeps it."""
    if drive.iface not in HOT:
        raise SetError(
            f"{drive.name} is on the {drive.iface} bus and cannot be removed while it runs",
            hint="Stop the virtual machine first.",
        )
    with ExitStack() as opened:
        spec, _ = machinedrives.open_one(env, drive, opened)
    plug.remove_drive(monitor, spec)
    machinekeys.take_back(monitor, drive)
