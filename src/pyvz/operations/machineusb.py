"""USB devices of the node in a virtual machine: QEMU gets what drives them, opened, not a path.

Whoever is given one has a lock on it (flock(2)), which lives as long as the descriptor that QEMU
has: no two machines get the same device.  A saved state knows nothing of them: they are taken out
before a state is written, as if they were pulled, and put in again when it goes on.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from pyvz.errors import BadValue, Busy, NotFound, StorageError, VZError
from pyvz.linux import deviceuse, usb
from pyvz.linux.usb import UsbDevice
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import HostUsb
from pyvz.operations.node import Node
from pyvz.vm import plug
from pyvz.vm.monitor import Monitor
from pyvz.vm.spec import UsbSpec

log = logging.getLogger(__name__)

_OURS = re.compile(r"usb[1-9]")  # usb0 is the controller


def find(wanted: str, there: list[UsbDevice] | None = None) -> UsbDevice:
    """Return the device that VENDOR:PRODUCT or BUS.ADDRESS means; raises NotFound, BadValue."""
    there = usb.devices() if there is None else there
    found = [each for each in there if wanted in {each.id, each.place}]
    if not found:
        known = "; ".join(f"{each.id} at {each.place} {each.label}".rstrip() for each in there)
        raise NotFound(
            f"This node has no USB device {wanted}",
            hint=f"There are: {known}" if known else "It has none at all.",
        )
    if len(found) > 1:
        places = " or ".join(each.place for each in found)
        raise BadValue(f"There are {len(found)} USB devices {wanted}", hint=f"Say which: {places}")
    return found[0]


def check(old: Config, new: Config) -> None:
    """Refuse devices that are added and that the node has not got, or that it has already."""
    for device in new.machine.usb_devices:
        if device in old.machine.usb_devices:
            continue
        place = find(device.device).place
        for other in old.machine.usb_devices:
            if place in {each.place for each in _meant(other)}:
                raise BadValue(f"That USB device is {other.name} already")


def _meant(device: HostUsb) -> list[UsbDevice]:
    """Return what a device may be of those that are there."""
    return [each for each in usb.devices() if device.device in {each.id, each.place}]


def open_all(
    node: Node, env: Environment, config: Config, opened: ExitStack
) -> tuple[UsbSpec, ...]:
    """Open the devices of a machine; raises NotFound, Busy, StorageError.  OPENED closes them."""
    return tuple(_open(node, env, device, opened) for device in config.machine.usb_devices)


def _open(node: Node, env: Environment, device: HostUsb, opened: ExitStack) -> UsbSpec:
    try:
        found = find(device.device)
    except NotFound as error:
        without = f"Without it: prlctl set {env.name} --device-del {device.name}"
        raise NotFound(f"{device.name}: {error.message}", hint=without) from error
    try:
        descriptor = os.open(found.path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"{device.name}: {found.path}: {error.strerror}") from error
    opened.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        user = _holder(node, found.path) or "another program"
        raise Busy(f"{device.name}: the USB device {found.id} is in use by {user}") from error
    _check_unused(device, found)
    return UsbSpec(device.name, f"/dev/fdset/{descriptor}", descriptor)


def _check_unused(device: HostUsb, found: UsbDevice) -> None:
    """Raise Busy when the node uses the device, or a program that has no lock of ours drives it."""
    uses = deviceuse.uses(found.sysfs)
    if usb.USBFS in usb.drivers(found).values():
        uses.append("another program drives it")
    if uses:
        raise Busy(f"{device.name}: the USB device {found.id} is not free", details="; ".join(uses))


def _holder(node: Node, path: Path) -> str:
    """Return the name of the running machine that has the device, "" when none has."""
    for uuid, process in node.machines.running().items():
        with suppress(OSError, VZError):
            links = (each.readlink() for each in Path(f"/proc/{process.pid}/fd").iterdir())
            if path in links:
                return node.registry.resolve(uuid).name
    return ""


def change(
    node: Node, env: Environment, configs: tuple[Config, Config], monitor: Monitor, undo: ExitStack
) -> bool:
    """Plug in and out what differs between two configurations; True: it waits for the next start.

    It waits when the machine has no controller: that cannot be plugged in.
    """
    old, new = (config.machine.usb_devices for config in configs)
    if old == new:
        return False
    there = plug.named(monitor)
    if "usb0" not in there:
        return True
    for device in old:
        if device not in new and device.name in there:
            plug.remove_usb(monitor, device.name)
            undo.callback(_plug_quietly, node, env, device, monitor)
    for device in new:
        if device not in old:
            _plug(node, env, device, monitor)
            undo.callback(_unplug_quietly, env, device.name, monitor)
    return False


def _plug(node: Node, env: Environment, device: HostUsb, monitor: Monitor) -> None:
    with ExitStack() as opened:
        plug.add_usb(monitor, _open(node, env, device, opened))


def _plug_quietly(node: Node, env: Environment, device: HostUsb, monitor: Monitor) -> None:
    try:
        _plug(node, env, device, monitor)
    except VZError as error:
        log.warning("%s: goes on without %s: %s", env.name, device.name, error)


def _unplug_quietly(env: Environment, name: str, monitor: Monitor) -> None:
    try:
        plug.remove_usb(monitor, name)
    except VZError as error:
        log.warning("%s: %s could not be taken out again: %s", env.name, name, error)


def take_out(monitor: Monitor) -> None:
    """Take all devices of the node out, before a state is written; needs nothing of the guest."""
    for name in _plugged(monitor):
        plug.remove_usb(monitor, name)


def put_in(node: Node, env: Environment, config: Config, monitor: Monitor) -> None:
    """Put in what the configuration has and the machine has not; without what is not to be had."""
    if not config.machine.usb_devices:
        return
    try:
        there = plug.named(monitor)
    except VZError as error:
        log.warning("%s: goes on without its USB devices: %s", env.name, error)
        return
    for device in config.machine.usb_devices if "usb0" in there else ():
        if device.name not in there:
            _plug_quietly(node, env, device, monitor)


def heal(node: Node, env: Environment, config: Config, monitor: Monitor) -> None:
    """Bring what QEMU has in line with the configuration, after a `set` that died."""
    wanted = {each.name for each in config.machine.usb_devices}
    for name in _plugged(monitor):
        if name not in wanted:
            plug.remove_usb(monitor, name)
    put_in(node, env, config, monitor)


def _plugged(monitor: Monitor) -> Iterable[str]:
    return [name for name in plug.named(monitor) if _OURS.fullmatch(name)]


def give_back(config: Config) -> None:
    """Let the node have again what the machine had, which does not run any more; idempotent."""
    for device in config.machine.usb_devices:
        for found in _meant(device):
            with suppress(OSError), open(found.path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else it is another machine's
                usb.give_back(found)
