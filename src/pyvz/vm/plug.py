"""Devices of a running machine: plugged in and taken out over its monitor."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pyvz.errors import MonitorError, NotEnoughResources, SetError, Timeout, VZError
from pyvz.vm import cidata, commandline
from pyvz.vm.monitor import Event, Monitor
from pyvz.vm.spec import MEMORY_SLOTS, DriveSpec, Layout, NicSpec, UsbSpec

_PLUGGED = "/machine/peripheral"  # where QEMU has devices by their names
UNPLUG = 20.0  # seconds for the guest to let a device go
_DEVICE = "device-"  # before the name of a drive or card (commandline.py)
BOOT_SLOW = "A guest that has not booted yet, or that has no driver for it, keeps the device."


def cpus(monitor: Monitor) -> tuple[int, list[dict[str, Any]]]:
    """Return how many CPUs are there, and the places of those that may be added, in order."""
    places: list[dict[str, Any]] = monitor.execute("query-hotpluggable-cpus")
    free = [place for place in places if "qom-path" not in place]
    free.sort(key=lambda place: sorted(place["props"].items()))
    return len(places) - len(free), free


def add_cpus(monitor: Monitor, wanted: int) -> list[str]:
    """Add CPUs until there are WANTED; returns the ids of the new ones.  Undone on failure."""
    there, free = cpus(monitor)
    if wanted - there > len(free):
        raise NotEnoughResources(
            f"The virtual machine can have {there + len(free)} CPUs at most while it runs",
            hint="Stop it, then set the number.",
        )
    made: list[str] = []
    try:
        for place in free[: max(0, wanted - there)]:
            name = f"cpu{there + len(made)}"
            monitor.execute("device_add", {"driver": place["type"], "id": name, **place["props"]})
            made.append(name)
    except BaseException:
        for name in reversed(made):
            with suppress(VZError):
                monitor.execute("device_del", {"id": name})
        raise
    return made


def add_memory(monitor: Monitor, number: int, size: int, *, hugepages: bool = False) -> None:
    """Plug in a DIMM of SIZE MiB as the machine's NUMBERth; raises SetError."""
    if number >= MEMORY_SLOTS:
        raise NotEnoughResources(
            "All memory slots of the virtual machine are taken", hint="Restart it."
        )
    memory, device = f"memory{number}", f"dimm{number}"
    backend = commandline.memory_backend(memory, size << 20, hugepages=hugepages)
    monitor.execute("object-add", backend)
    try:
        monitor.execute("device_add", {"driver": "pc-dimm", "id": device, "memdev": memory})
    except BaseException:
        with suppress(VZError):
            monitor.execute("object-del", {"id": memory})
        raise


def balloon(monitor: Monitor, size: int) -> None:
    """Tell the balloon to leave SIZE MiB to the guest; the guest follows when it can."""
    monitor.execute("balloon", {"value": size << 20})


def add_drive(monitor: Monitor, drive: DriveSpec, chipset: str) -> None:
    """Plug in a disk; raises MonitorError, and then nothing is there."""
    made: list[str] = []
    try:
        for node in commandline.blockdevs(drive):
            monitor.execute("blockdev-add", node)
            made.append(str(node["node-name"]))
        monitor.execute("device_add", commandline.drive_device(drive, chipset))
    except BaseException:
        for name in reversed(made):
            with suppress(VZError):
                monitor.execute("blockdev-del", {"node-name": name})
        raise


def remove_drive(monitor: Monitor, drive: DriveSpec) -> None:
    """Take a disk out; raises SetError when the guest keeps it (it stays then)."""
    _unplug(monitor, f"{_DEVICE}{drive.name}", drive.name)
    for node in reversed(commandline.blockdevs(drive)):
        with suppress(VZError):
            monitor.execute("blockdev-del", {"node-name": node["node-name"]})


def remove_nodes(monitor: Monitor, name: str, patience: float = UNPLUG) -> None:
    """Take a disk out of which nothing but its name is known; raises SetError, as remove_drive."""
    _unplug(monitor, f"{_DEVICE}{name}", name, patience)
    for node in (name, f"{name}-file", f"{name}-base", f"{name}-base-file"):
        with suppress(VZError):
            monitor.execute("blockdev-del", {"node-name": node})


def devices(monitor: Monitor) -> frozenset[str]:
    """Return the names of the drives and cards that are plugged in: hdd0, cdrom0, net0, ...

    The seed of cloud-init is none of them: it is there from the start and nobody takes it out.
    """
    names = named(monitor)
    found = {name.removeprefix(_DEVICE) for name in names if name.startswith(_DEVICE)}
    return frozenset(found - {cidata.LABEL})


def measured(monitor: Monitor, made: Layout) -> Layout:
    """Return how a machine is put together by QEMU's own account: processors and DIMMs."""
    there, _ = cpus(monitor)
    rows = [each["data"] for each in monitor.execute("query-memory-devices")]
    slots = sorted((int(each["slot"]), int(each["size"]) >> 20) for each in rows if "slot" in each)
    return made._replace(plugged=there - made.cpus, dimms=tuple(size for _, size in slots))


def add_nic(monitor: Monitor, nic: NicSpec, chipset: str) -> None:
    """Plug in a card whose tap device is nic.tap."""
    host = f"host-{nic.name}"
    monitor.give(nic.tap, host)
    monitor.execute("netdev_add", {"type": "tap", "id": host, "fd": host})
    try:
        monitor.execute("device_add", commandline.nic_device(nic, chipset))
        set_link(monitor, nic.name, up=nic.connected)
    except BaseException:
        with suppress(VZError):
            monitor.execute("netdev_del", {"id": host})
        raise


def remove_nic(monitor: Monitor, name: str, patience: float = UNPLUG) -> None:
    """Take a card out; raises SetError when the guest has not let it go in time."""
    _unplug(monitor, f"{_DEVICE}{name}", name, patience)
    monitor.execute("netdev_del", {"id": f"host-{name}"})


def set_link(monitor: Monitor, name: str, *, up: bool) -> None:
    """Plug the cable of a card in, or out."""
    monitor.execute("set_link", {"name": f"{_DEVICE}{name}", "up": up})


def named(monitor: Monitor) -> set[str]:
    """Return all devices that have a name of ours, by QEMU's: device-hdd0, usb0, usb1, ..."""
    found = monitor.execute("qom-list", {"path": _PLUGGED})
    return {each["name"] for each in found if each["type"].startswith("child<")}


def add_usb(monitor: Monitor, device: UsbSpec) -> None:
    """Plug in a USB device of the node, whatever its `file` is: QEMU is given the descriptor."""
    given = device._replace(file=monitor.add_file(device.descriptor))
    try:
        monitor.execute("device_add", commandline.usb_device(given))
    except BaseException:
        with suppress(VZError):
            monitor.remove_file(given.file)
        raise


def remove_usb(monitor: Monitor, name: str) -> None:
    """Pull a USB device of the node out, and let go of it."""
    place = {"path": f"{_PLUGGED}/{name}", "property": "hostdevice"}
    file = str(monitor.execute("qom-get", place))
    _unplug(monitor, name, name)
    monitor.remove_file(file)


def insert(monitor: Monitor, drive: DriveSpec) -> None:
    """Put a disc into a CD drive, instead of the one that is in it."""
    eject(monitor, drive)
    nodes = commandline.blockdevs(drive)
    try:
        for node in nodes:
            monitor.execute("blockdev-add", node)
        medium = {"id": f"{_DEVICE}{drive.name}", "node-name": drive.name}
        monitor.execute("blockdev-insert-medium", medium)
        monitor.execute("blockdev-close-tray", {"id": medium["id"]})
    except BaseException:
        for node in reversed(nodes):
            with suppress(VZError):
                monitor.execute("blockdev-del", {"node-name": node["node-name"]})
        raise


def eject(monitor: Monitor, drive: DriveSpec) -> None:
    """Take the disc out of a CD drive, by force: the guest may have locked it."""
    device = f"{_DEVICE}{drive.name}"
    monitor.execute("blockdev-open-tray", {"id": device, "force": True})
    with suppress(VZError):  # it was empty
        monitor.execute("blockdev-remove-medium", {"id": device})
    for name in (drive.name, f"{drive.name}-file"):
        with suppress(VZError):
            monitor.execute("blockdev-del", {"node-name": name})


def _unplug(monitor: Monitor, device: str, name: str, patience: float = UNPLUG) -> None:
    """Ask the guest for a device and wait until it has let go."""
    monitor.forget_events()

    def about_it(event: Event) -> bool:
        return bool(event.get("data", {}).get("device") == device)

    try:
        monitor.execute("device_del", {"id": device})
    except MonitorError as error:
        if "not found" not in error.message:
            raise
        return  # it is out already
    try:
        event = monitor.wait_event(
            {"DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"}, patience, about_it
        )
    except Timeout:
        raise SetError(f"The guest does not let {name} go", hint=BOOT_SLOW) from None
    if event["event"] != "DEVICE_DELETED":
        raise SetError(f"The guest refused to let {name} go")
