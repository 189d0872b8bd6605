"""USB devices of the node in a virtual machine: QEMU gets what drives them, opened, not a path."""

from __future__ import annotations

import os
from contextlib import ExitStack

from pyvz.errors import BadValue, NotFound, StorageError
from pyvz.linux import usb
from pyvz.linux.usb import UsbDevice
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.vm.spec import UsbSpec


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
    """Refuse devices that are added and that the node has not got."""
    for device in new.machine.usb_devices:
        if device not in old.machine.usb_devices:
            find(device.device)


def open_all(env: Environment, config: Config, opened: ExitStack) -> tuple[UsbSpec, ...]:
    """Open the devices of a machine; raises NotFound, StorageError.  OPENED closes them."""
    found = []
    for device in config.machine.usb_devices:
        try:
            path = find(device.device).path
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except NotFound as error:
            without = f"Without it: prlctl set {env.name} --device-del {device.name}"
            raise NotFound(f"{device.name}: {error.message}", hint=without) from error
        except OSError as error:
            raise StorageError(f"{device.name}: {path}: {error.strerror}") from error
        opened.callback(os.close, descriptor)
        found.append(UsbSpec(device.name, f"/dev/fdset/{descriptor}", descriptor))
    return tuple(found)
