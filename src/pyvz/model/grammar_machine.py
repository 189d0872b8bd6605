"""VM_DRIVES and VM_SERIALS: the disks, CD drives and serial ports of a virtual machine.

Entries are joined by ``;``, each is ``k=v`` pairs joined by ``,`` and begins with ``name=``; the
path, which may hold a comma, comes last.  A relative path is below the home of the machine.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from pyvz.errors import BadValue
from pyvz.model.grammar import Choice, Integer, YesNo

AGENT_CHANNEL = "org.qemu.guest_agent.0"
MOST_CHANNELS = 8
_CHANNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME = re.compile(r"(hdd|cdrom)(\d{1,2})")
_SERIAL = re.compile(r"serial(\d)")
_USB = re.compile(r"usb[1-9]")  # usb0 is the controller
_PCI = re.compile(r"pci[1-4]")
_PCI_DEVICE = re.compile(r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
_USB_DEVICE = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}|[1-9]\d{0,2}\.[1-9]\d{0,2}")
_PATH = re.compile(r"[^;\"'\\$`\x00-\x1f]+")
# UUIDs of nova and Cinder fit; on virtio, sata and ide guests see the first 20 characters.
_SERIAL_NUMBER = re.compile(r"[A-Za-z0-9_.+ -]{1,36}")
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_MAX_KIB = 2**43

FORMATS = ("qcow2", "raw", "ploop")
INTERFACES = {"ide": 4, "scsi": 7, "virtio": 8, "sata": 6}  # and how many positions each has
SERIAL_MODES = ("server", "client")


class Drive(NamedTuple):
    """A disk (hdd0, ...) or a CD drive (cdrom0, ...); texts are "" where nothing is said.

    size: KiB, as the guest sees it; 0: what the image has.
    format: of the image; ploop: it is a directory with a DiskDescriptor.xml.
    keyid: the key of the node's store that opens an encrypted image.
    device: a disk or drive of the node instead of an image.  base: of a linked clone: the image
    that this one was made from, which is never written.
    connected: for a CD drive: a disc is in it.  enabled: it is there at all.
    """

    name: str
    iface: str = "scsi"
    position: int = 0
    subtype: str = ""
    format: str = "qcow2"
    size: int = 0
    serial: str = ""
    enabled: bool = True
    connected: bool = True
    autocompact: bool = True
    keyid: str = ""
    base: str = ""
    device: str = ""
    image: str = ""

    @property
    def is_disk(self) -> bool:
        """Whether it is a disk, not a CD drive."""
        return self.name.startswith("hdd")


class HostPci(NamedTuple):
    """A PCI device of the node.  name: pci1, ...  device: its address, with the domain."""

    name: str
    device: str


class HostUsb(NamedTuple):
    """A USB device of the node.  name: usb1, ...  device: VENDOR:PRODUCT or BUS.ADDRESS."""

    name: str
    device: str


class SerialPort(NamedTuple):
    """A serial port.  kind: socket, tcp, udp, file, device; serial0 without one is the console."""

    name: str
    kind: str = ""
    mode: str = "server"
    enabled: bool = True
    target: str = ""


def _path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise BadValue(f"'{text}' cannot be the path of an image")
    return text


def _serial(text: str) -> str:
    if text and not _SERIAL_NUMBER.fullmatch(text):
        raise BadValue(f"'{text}' is not a serial number: up to 36 letters, digits and - _ . +")
    return text


def _keyid(text: str) -> str:
    if text and not _KEY.fullmatch(text):
        raise BadValue(f"'{text}' is not the name of a key: up to 64 letters, digits and - _ .")
    return text


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise BadValue(f"'{text}' is not the name of a disk or CD drive (hdd0, cdrom0)")
    return text


_READERS: dict[str, Any] = {
    "name": _name,
    "iface": Choice(tuple(INTERFACES)).parse,
    "position": Integer(0, 15).parse,
    "subtype": Choice(("virtio-scsi",)).parse,
    "format": Choice(FORMATS).parse,
    "size": Integer(0, _MAX_KIB).parse,
    "serial": _serial,
    "enabled": YesNo().parse,
    "connected": YesNo().parse,
    "autocompact": YesNo().parse,
    "keyid": _keyid,
    "base": _path,
    "device": _path,
    "image": _path,
}
_PORT_READERS: dict[str, Any] = {
    "name": lambda text: text if _SERIAL.fullmatch(text) else _no_port(text),
    "kind": Choice(("socket", "tcp", "udp", "file", "device")).parse,
    "mode": Choice(SERIAL_MODES).parse,
    "enabled": YesNo().parse,
    "target": _path,
}


def _no_port(text: str) -> str:
    raise BadValue(f"'{text}' is not the name of a serial port (serial0)")


def change_drive(drive: Drive, key: str, text: str) -> Drive:
    """Return DRIVE with one of its values read from TEXT; raises BadValue."""
    changed: dict[str, Any] = {key: _READERS[key](text)}
    return drive._replace(**changed)


def _pairs(text: str, last: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the pairs of one entry; the path behind a key of LAST may hold commas."""
    found: list[tuple[str, str]] = []
    rest = text.strip()
    while rest:
        key, equals, value = rest.partition("=")
        if not equals:
            raise BadValue(f"'{rest}' in '{text}' is not of the form KEY=VALUE")
        if key in last:
            return [*found, (key, value)]
        value, _, rest = value.partition(",")
        found.append((key, value))
    return found


def _entry(text: str, last: tuple[str, ...], readers: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in _pairs(text, last):
        if key not in readers:
            raise BadValue(f"'{key}' in '{text}' is not a property of a device")
        values[key] = readers[key](value)
    if "name" not in values:
        raise BadValue(f"'{text}' names no device")
    return values


def _format(values: tuple[tuple[str, Any], ...], defaults: dict[str, Any]) -> str:
    texts = []
    for key, value in values:
        if key != "name" and value == defaults.get(key):
            continue
        text = ("yes" if value else "no") if isinstance(value, bool) else str(value)
        texts.append(f"{key}={text}")
    return ",".join(texts)


class Drives:
    """VM_DRIVES."""

    def parse(self, text: str) -> tuple[Drive, ...]:
        """Return the drives; BadValue names the entry."""
        parts = [part for part in text.split(";") if part.strip()]
        found = tuple(Drive(**_entry(part, ("image", "device"), _READERS)) for part in parts)
        names = [drive.name for drive in found]
        if len(set(names)) < len(names):
            raise BadValue("Two drives have the same name")
        return found

    def format(self, value: tuple[Drive, ...]) -> str:
        """Return the stored text."""
        defaults = Drive._field_defaults
        return ";".join(_format(tuple(drive._asdict().items()), defaults) for drive in value)


class SerialPorts:
    """VM_SERIALS."""

    def parse(self, text: str) -> tuple[SerialPort, ...]:
        """Return the ports; BadValue names the entry."""
        parts = [part for part in text.split(";") if part.strip()]
        return tuple(SerialPort(**_entry(part, ("target",), _PORT_READERS)) for part in parts)

    def format(self, value: tuple[SerialPort, ...]) -> str:
        """Return the stored text."""
        defaults = SerialPort._field_defaults
        return ";".join(_format(tuple(port._asdict().items()), defaults) for port in value)


class PciDevices:
    """VM_PCI_DEVICES: pci1=0000:03:00.0."""

    def parse(self, text: str) -> tuple[HostPci, ...]:
        """Return the devices; BadValue names the entry."""
        found = []
        for part in text.split():
            name, _, device = part.partition("=")
            if not _PCI.fullmatch(name):
                raise BadValue(f"'{name}' is not the name of a PCI device (pci1 to pci4)")
            found.append(HostPci(name, pci_device(device)))
        for values in ([each.name for each in found], [each.device for each in found]):
            if len(set(values)) < len(values):
                raise BadValue("The same PCI device twice")
        return tuple(found)

    def format(self, value: tuple[HostPci, ...]) -> str:
        """Return the stored text."""
        return " ".join(f"{each.name}={each.device}" for each in value)


def pci_device(text: str) -> str:
    """Return the address of a PCI device with its domain; raises BadValue."""
    found = _PCI_DEVICE.fullmatch(text.lower())
    if found is None:
        raise BadValue(
            f"'{text}' is not a PCI device of the node",
            hint="[DOMAIN:]BUS:SLOT.FUNCTION, as prlsrvctl info shows them: 0000:03:00.0",
        )
    domain, bus, slot, function = found.groups()
    return f"{domain or '0000'}:{bus}:{slot}.{function}"


class UsbDevices:
    """VM_USB_DEVICES: usb1=046d:c52b usb2=1.4."""

    def parse(self, text: str) -> tuple[HostUsb, ...]:
        """Return the devices; BadValue names the entry."""
        found = []
        for part in text.split():
            name, _, device = part.partition("=")
            if not _USB.fullmatch(name):
                raise BadValue(f"'{name}' is not the name of a USB device (usb1)")
            found.append(HostUsb(name, usb_device(device)))
        if len({each.name for each in found}) < len(found):
            raise BadValue("Two USB devices have the same name")
        return tuple(found)

    def format(self, value: tuple[HostUsb, ...]) -> str:
        """Return the stored text."""
        return " ".join(f"{each.name}={each.device}" for each in value)


def usb_device(text: str) -> str:
    """Return what names a USB device of a node; raises BadValue."""
    word = text.lower()
    if not _USB_DEVICE.fullmatch(word):
        raise BadValue(
            f"'{text}' is not a USB device of the node",
            hint="VENDOR:PRODUCT or BUS.ADDRESS, as lsusb shows them: 046d:c52b, 1.4",
        )
    return word


class BootDevices:
    """VM_BOOT: names of devices, the first to boot from first."""

    def parse(self, text: str) -> tuple[str, ...]:
        """Return the names, each once."""
        names = tuple(text.replace(",", " ").split())
        for name in names:
            if not re.fullmatch(r"(hdd|cdrom|net)\d{1,2}", name):
                raise BadValue(f"'{name}' is not a device to boot from (hdd0, cdrom0, net0)")
        if len(set(names)) < len(names):
            raise BadValue("A device can stand in the boot order only once")
        return names

    def format(self, value: tuple[str, ...]) -> str:
        """Return the stored text."""
        return " ".join(value)


class Channels:
    """VM_CHANNELS: names of ports that the guest has as /dev/virtio-ports/NAME."""

    def parse(self, text: str) -> tuple[str, ...]:
        """Return the names, each once."""
        names = tuple(text.replace(",", " ").split())
        for name in names:
            if not _CHANNEL.fullmatch(name):
                raise BadValue(
                    f"'{name}' cannot be the name of a channel: up to 64 letters, digits, . _ -"
                )
            if name == AGENT_CHANNEL:
                raise BadValue(f"Every virtual machine has the channel {name}")
        if len(set(names)) < len(names):
            raise BadValue("Two channels have the same name")
        if len(names) > MOST_CHANNELS:
            raise BadValue(f"A virtual machine cannot have more than {MOST_CHANNELS} channels")
        return names

    def format(self, value: tuple[str, ...]) -> str:
        """Return the stored text."""
        return " ".join(value)
