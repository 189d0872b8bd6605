"""What the options of `create` and `set` mean for a virtual machine, as values.

An option that names a drive or port begins to speak of it; what follows and belongs to such a
device changes that one.  Cards are read by netdevice.py, the rest by options.py.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from pyvz.errors import BadValue, DiskNotFound, NotEnoughResources, NotFound, UsageError
from pyvz.model.config import Config
from pyvz.model.environment import Kind
from pyvz.model.grammar import YesNo
from pyvz.model.grammar_machine import (
    INTERFACES,
    Drive,
    HostPci,
    HostUsb,
    SerialPort,
    change_drive,
    pci_device,
    usb_device,
)
from pyvz.model.grammar_processor import Feature
from pyvz.model.param import normal
from pyvz.model.secret import Secret
from pyvz.operations import netdevice, options, vncpassword
from pyvz.operations.options import GivenOptions, NewPassword
from pyvz.units import KIB, MIB, UNLIMITED, parse_size
from pyvz.vm import cpumodel
from pyvz.vm.spec import MOST_CPUS, boot_places

_VERBS = ("device-add", "device-set", "device-del", "device-connect", "device-disconnect")
_DEVICE = re.compile(r"(hdd|cdrom|serial)(\d{1,2})")
_USB = re.compile(r"usb\d")
_PCI = re.compile(r"pci\d")
_MOST_PCI = 4  # as many places are free on its bus (vm/commandline.py)
_SOUND = "sound0"
_TYPES = frozenset({"hdd", "cdrom", "serial", "usb", "pci", "sound"})
_GONE = frozenset({"fdd", "parallel", "hdd-part"})
_TEXTS = frozenset({"image", "device", "iface", "subtype", "position", "serial", "autocompact"})
_CODING = frozenset({"encrypt", "reencrypt"})
_DESTROYING = frozenset({"destroy-image", "destroy-image-force"})
_FLAGS = _CODING | _DESTROYING | {"recreate", "detach-only"}
# Of libvirt's clients only: the image of a new disk may come later, and will be of that format.
AWAIT: Final = "await-image"
_KEYS = frozenset({"encryption-keyid", "decrypt"})
_QUIET = frozenset({"type", "split", "offline", "no-fs-resize", "hdd-block-size", "no-wipe"})
_PORTS = {"output": "file", "socket": "socket", "socket-tcp": "tcp", "socket-udp": "udp"}
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s,;:]*):[1-9]\d{0,4}")


class MachinePlan(NamedTuple):
    """What the options mean.

    flags: recreate, destroy-image, ... of the one drive that the call is about; "encrypt hdd0" and
    "reencrypt hdd0" name it.
    secret: the password of the remote display: None: it stays; Secret(""): none any more.
    """

    config: Config
    fields: tuple[str, ...] = ()
    echo: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()
    sample: str | None = None
    password: NewPassword | None = None
    secret: Secret | None = None


def plan(config: Config, dialect: str, given: GivenOptions) -> MachinePlan:
    """Return what GIVEN makes of CONFIG; raises UsageError, BadValue, NotFound, Unsupported."""
    _check_one_device(given)
    reader = _Reader(config)
    for name, text in given:
        reader.read(normal(name), text)
    nics = netdevice.take(config, dialect, reader.rest)
    made = options.plan(nics.config, dialect, nics.rest, Kind.VM)
    _check_board(made.config)
    if "cpu.cpus" in made.fields:
        _check_number(made.config)
    if "machine.cpu_model" in made.fields:
        _check_cpu(made.config.machine.cpu_model)
    if "machine.cpu_features" in made.fields:
        _check_features(made.config.machine.cpu_features)
    changes = reader.changes(config)
    secret = reader.secret
    if made.config.machine.vnc_open and "machine.vnc_open" in made.fields:
        secret = Secret("")
    elif secret is not None:
        changes["machine.vnc_open"] = False
    changed = made.config.changed(changes)
    if "machine.boot" in made.fields:
        _check_boot(changed)
    return MachinePlan(
        config=changed,
        fields=(*changes, *nics.fields, *made.fields),
        echo=(*reader.echo, *nics.echo, *made.echo),
        warnings=made.warnings,
        flags=frozenset(reader.flags),
        sample=made.sample,
        password=made.password,
        secret=secret,
    )


def _check_board(config: Config) -> None:
    machine = config.machine
    if machine.secure_boot and not machine.efi:
        raise UsageError(
            "Secure boot needs UEFI", hint="--efi-boot on --efi-secure-boot on, or both off."
        )
    if machine.secure_boot and machine.chipset != "q35":
        raise UsageError("Secure boot needs the chipset q35")


def _check_number(config: Config) -> None:
    most = MOST_CPUS[config.machine.chipset]
    if not 1 <= (config.cpu.cpus or 0) <= most:
        raise BadValue(f"--cpus: a virtual machine has 1 to {most} CPUs")


def _check_boot(config: Config) -> None:
    there = set(boot_places(config.changed({"machine.boot": ()})))
    there |= {drive.name for drive in config.machine.drives}  # also one that is disabled
    for name in config.machine.boot:
        if name not in there:
            raise BadValue(
                f"--device-bootorder: there is no device {name}",
                hint=f"There are: {', '.join(sorted(there))}" if there else "",
            )


def _check_cpu(model: str) -> None:
    """Raise BadValue for a model that QEMU here does not know; without QEMU nobody can tell."""
    models = cpumodel.known()
    if model and models and model not in models:
        near = [name for name in models if name.lower().startswith(model[:4].lower())]
        raise BadValue(
            f"QEMU on this node knows no processor '{model}'",
            hint=f"Like it are: {', '.join(near)}" if near else "qemu-system-x86_64 -cpu help",
        )


def _check_features(wanted: tuple[Feature, ...]) -> None:
    """Raise BadValue for features that QEMU here does not know; without QEMU nobody can tell."""
    there = cpumodel.features()
    for each in wanted:
        if there and each.name not in there:
            raise BadValue(
                f"QEMU on this node knows no feature '{each.name}' of a processor",
                hint="qemu-system-x86_64 -cpu help",
            )


def _check_one_device(given: GivenOptions) -> None:
    named = [name for name, _ in given if normal(name) in _VERBS]
    if len(named) > 1:
        raise UsageError("Only one device can be added, changed or removed by one call")


class _Reader:
    """Reads options in their order; `_at` is the drive or port that they speak of."""

    def __init__(self, config: Config) -> None:
        self.drives = list(config.machine.drives)
        self.ports = list(config.machine.serials)
        self.usb = config.machine.usb
        self.sound = config.machine.sound
        self.usb_devices = list(config.machine.usb_devices)
        self.pci_devices = list(config.machine.pci_devices)
        self._usb_asked = False  # for a controller, unless --device follows
        self.flags: set[str] = set()
        self.rest: list[tuple[str, str | None]] = []
        self.echo: list[str] = []
        self.secret: Secret | None = None
        self._at = ""
        self._gone = False

    def changes(self, config: Config) -> dict[str, object]:
        """Return the fields that have changed."""
        _check_positions(self.drives)
        self._settle_usb()
        self._check_flags()
        if self._at == "pci":
            raise UsageError(
                "Which PCI device?", hint="--device-add pci --device NAME, of prlsrvctl info"
            )
        found: dict[str, object] = {}
        for field, value, old in (
            ("machine.drives", tuple(self.drives), config.machine.drives),
            ("machine.serials", tuple(self.ports), config.machine.serials),
            ("machine.usb", self.usb, config.machine.usb),
            ("machine.sound", self.sound, config.machine.sound),
            ("machine.usb_devices", tuple(self.usb_devices), config.machine.usb_devices),
            ("machine.pci_devices", tuple(self.pci_devices), config.machine.pci_devices),
        ):
            if value != old:
                found[field] = value
        return found

    def _check_flags(self) -> None:
        if "detach-only" in self.flags and _DESTROYING & self.flags:
            raise UsageError("Unable to simultaneously use --detach-only and --destroy-image")
        if "recreate" in self.flags and not self._at.startswith("hdd"):
            raise UsageError("--recreate is for disks")

    def read(self, key: str, text: str | None) -> None:
        """Take one option, or leave it in `rest`."""
        if key == "diskspace":
            self._set_size("hdd0", text or "", key)
            self.echo.append(f"set {key} {text}")
        elif key == "vnc-passwd":
            self.secret = vncpassword.check(text or "")
            self.echo.append("set vnc-passwd")
        elif key in _VERBS and self._device(key, text or ""):
            self.echo.append(f"set {key} {text}")
        elif self._at and self._property(key, text):
            self.echo.append(f"set {key} {text}" if text else f"set {key}")
        else:
            self.rest.append((key, text))

    def _device(self, key: str, text: str) -> bool:
        """Begin to speak of a device; False: it is a card, which others read."""
        self._at = ""
        if key == "device-add":
            return self._add(text)
        if text == _SOUND:
            self._no_sound(key)
            return True
        if _USB.fullmatch(text):
            self._usb(key, text)
            return True
        if _PCI.fullmatch(text):
            self._pci(key, text)
            return True
        if not _DEVICE.fullmatch(text):
            return False
        self._find(text)
        if key == "device-del":
            self.drives = [drive for drive in self.drives if drive.name != text]
            self.ports = [port for port in self.ports if port.name != text]
            self._gone = True
        elif key in {"device-connect", "device-disconnect"}:
            self._set_drive(text, "connected", "yes" if key == "device-connect" else "no")
        self._at = text
        return True

    def _add(self, kind: str) -> bool:
        if kind in _GONE:
            raise UsageError(f"A device of type {kind} is not supported by this version")
        if kind == "net":
            return False
        if kind not in _TYPES:
            known = ", ".join(sorted({*_TYPES, "net"}))
            raise UsageError(f"An incorrect value '{kind}' for --device-add: use one of {known}")
        if kind == "sound":
            if self.sound:
                raise UsageError("A virtual machine has one sound card at most")
            self.sound = True
            return True
        if kind == "usb":
            self._at, self._usb_asked = "usb", True
            return True
        if kind == "pci":
            self._at = "pci"
            return True
        taken = {each.name for each in self.drives} | {each.name for each in self.ports}
        name = next(name for n in range(99) if (name := f"{kind}{n}") not in taken)
        if kind == "serial":
            if name not in {"serial0", "serial1", "serial2", "serial3"}:
                raise NotEnoughResources("A virtual machine has four serial ports at most")
            self.ports.append(SerialPort(name))
        else:
            self.drives.append(Drive(name, position=-1, format="" if kind == "hdd" else "raw"))
        self._at = name
        return True

    def _no_sound(self, key: str) -> None:
        if key != "device-del":
            raise UsageError("A sound card can only be added and removed")
        if not self.sound:
            raise NotFound(f"There is no device {_SOUND}")
        self.sound = False

    def _usb(self, key: str, name: str) -> None:
        """Take the USB controller (usb0) or a device of the node away; nothing else can be done."""
        if key != "device-del":
            raise UsageError("A USB device can only be added and removed")
        left = [each for each in self.usb_devices if each.name != name]
        if name == "usb0":
            if left:
                raise UsageError("There are USB devices: remove them first")
            self.usb = False
        elif len(left) == len(self.usb_devices):
            raise NotFound(f"There is no device {name}")
        self.usb_devices = left

    def _new_usb(self, key: str, text: str) -> bool:
        """Take the device of the node that is to be plugged in; without one: a controller."""
        if key != "device":
            return False
        taken = {each.name for each in self.usb_devices}
        free = [name for n in range(1, 10) if (name := f"usb{n}") not in taken]
        if not free:
            raise NotEnoughResources("A virtual machine has nine USB devices of the node at most")
        self.usb_devices.append(HostUsb(free[0], usb_device(text)))
        self._usb_asked = False
        return True

    def _pci(self, key: str, name: str) -> None:
        """Take a PCI device of the node away; nothing else can be done."""
        if key != "device-del":
            raise UsageError("A PCI device can only be added and removed")
        left = [each for each in self.pci_devices if each.name != name]
        if len(left) == len(self.pci_devices):
            raise NotFound(f"There is no device {name}")
        self.pci_devices = left

    def _new_pci(self, key: str, text: str) -> bool:
        """Take the device of the node that is to be plugged in."""
        if key != "device":
            return False
        taken = {each.name for each in self.pci_devices}
        free = [name for n in range(1, _MOST_PCI + 1) if (name := f"pci{n}") not in taken]
        if not free:
            raise NotEnoughResources(
                f"A virtual machine has {_MOST_PCI} PCI devices of the node at most"
            )
        device = pci_device(text)
        for each in self.pci_devices:
            if each.device == device:
                raise BadValue(f"That PCI device is {each.name} already")
        self.pci_devices.append(HostPci(free[0], device))
        self._at = ""
        return True

    def _settle_usb(self) -> None:
        if self._usb_asked and self.usb:
            raise UsageError(
                "There is a USB controller already",
                hint="A USB device of the node: --device-add usb --device VENDOR:PRODUCT",
            )
        self.usb = self.usb or self._usb_asked

    def _find(self, name: str) -> Drive | SerialPort:
        every: list[Drive | SerialPort] = [*self.drives, *self.ports]
        for each in every:
            if each.name == name:
                return each
        raise (NotFound if name.startswith("serial") else DiskNotFound)(
            f"There is no device {name}"
        )

    def _property(self, key: str, text: str | None) -> bool:
        """Take an option about the device; False: it is about something else."""
        if key == AWAIT:
            self.flags.add(AWAIT)
            self._set_drive(self._at, "format", text or "")
            return True
        if key == "passthr":
            raise UsageError("The guest gets the disk, not its SCSI commands: leave --passthr out")
        if key in _FLAGS:
            self.flags.add(f"{key} {self._at}" if key in _CODING else key)
            return True
        if key in _QUIET:
            return True
        if self._gone:
            return False
        if self._at == "usb":
            return self._new_usb(key, text or "")
        if self._at == "pci":
            return self._new_pci(key, text or "")
        if self._at.startswith("serial"):
            return self._port(key, text or "")
        return self._drive(key, text)

    def _drive(self, key: str, text: str | None) -> bool:
        """Take an option about a drive; False: it is about something else."""
        if key == "size":
            self._set_size(self._at, text or "", key)
        elif key in {"enable", "disable", "connect", "disconnect"}:
            field = "enabled" if key in {"enable", "disable"} else "connected"
            self._set_drive(self._at, field, "yes" if key in {"enable", "connect"} else "no")
        elif key in _TEXTS:
            self._set_text(key, text or "")
        elif key in _KEYS and self._at.startswith("hdd"):
            self._set_drive(self._at, "keyid", text or "" if key == "encryption-keyid" else "")
        else:
            return False
        return True

    def _set_size(self, name: str, text: str, key: str) -> None:
        size = parse_size(text, default_unit=MIB)
        if not 0 < size < UNLIMITED:
            raise BadValue(f"--{key}: a disk needs a size")
        self._set_drive(name, "size", str(-(-size // KIB)))

    def _set_text(self, key: str, text: str) -> None:
        drive = self._find(self._at)
        assert isinstance(drive, Drive)  # noqa: S101  ports were sorted out before
        if key in {"image", "device"} and drive.image + drive.device and drive.is_disk:
            raise UsageError("The image of a disk cannot be exchanged: remove it, then add another")
        if key == "autocompact":
            text = "yes" if YesNo().parse(text) else "no"
        if key == "iface":
            self._replace(drive._replace(position=-1))
        self._set_drive(self._at, key, text)
        if key in {"image", "device"} and not drive.is_disk:
            other = "device" if key == "image" else "image"
            drive = self._find(self._at)
            self._replace(drive._replace(**{other: "", "connected": True}))  # type: ignore[arg-type]

    def _set_drive(self, name: str, key: str, text: str) -> None:
        drive = self._find(name)
        if not isinstance(drive, Drive):
            raise UsageError(f"{name} cannot be connected or disconnected")
        try:
            self._replace(change_drive(drive, key, text))
        except BadValue as error:
            raise BadValue(f"--{key}: {error.message}", hint=error.hint) from error

    def _replace(self, changed: Drive) -> None:
        self.drives = [changed if each.name == changed.name else each for each in self.drives]

    def _port(self, key: str, text: str) -> bool:
        port = next(each for each in self.ports if each.name == self._at)
        if key == "device":
            raise UsageError("A device of the node cannot be a serial port in this version")
        if key in {"socket-tcp", "socket-udp"} and not _HOST_PORT.fullmatch(text):
            raise BadValue(f"--{key}: '{text}' is not of the form HOST:PORT")
        if key in _PORTS:
            changed = port._replace(kind=_PORTS[key], target=text)
        elif key == "socket-mode":
            if text not in {"server", "client"}:
                raise BadValue(f"--socket-mode: '{text}' is not one of server, client")
            changed = port._replace(mode=text)
        elif key in {"enable", "disable"}:
            changed = port._replace(enabled=key == "enable")
        else:
            return False
        self.ports = [changed if each.name == port.name else each for each in self.ports]
        return True


def _check_positions(drives: list[Drive]) -> None:
    """Give drives without a position the first free one; refuse two at the same place."""
    for index, drive in enumerate(drives):
        taken = {each.position for each in drives if each is not drive and _same_bus(each, drive)}
        most = INTERFACES[drive.iface]
        position = drive.position
        if position < 0:
            position = next((n for n in range(most) if n not in taken), most)
        if position >= most:
            raise BadValue(f"{drive.name}: {drive.iface} has positions 0 to {most - 1} only")
        if position in taken:
            raise BadValue(f"{drive.name}: {drive.iface}:{position} is taken")
        drives[index] = drive._replace(position=position)


def _same_bus(one: Drive, other: Drive) -> bool:
    buses = {"sata": "ide"}
    return buses.get(one.iface, one.iface) == buses.get(other.iface, other.iface)
