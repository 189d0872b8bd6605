"""What QEMU is to be started with, as values: made from a configuration, turned into words by
commandline.py.

Files are named by what QEMU is to open: usually /dev/fdset/N, a descriptor that it is given, so
that it needs no right to any file of the node.
"""

from __future__ import annotations

from typing import NamedTuple

from pyvz.errors import BadValue
from pyvz.model.config import Config
from pyvz.model.grammar_machine import Channels
from pyvz.units import MIB, PAGE_SIZE, UNLIMITED

DEFAULT_MEMORY = 1024  # MiB, of a machine whose configuration says nothing
MEMORY_SLOTS = 16
MOST_CPUS = {"q35": 288, "piix": 255}  # of QEMU 7.2; newer ones have more
OVERHEAD = 512 * MIB  # of QEMU itself, beside the guest's memory: devices, translated code, cache
PROMISED = 128 * MIB  # of that: what it takes in daily life, and is promised by the node
TRANSLATION_CACHE = 256  # MiB


class DriveSpec(NamedTuple):
    """A disk or CD drive as QEMU sees it.

    file: what to open; "" for a CD drive without a disc.  driver: file or host_device.
    base: the image below, read-only, in `base_format`.  direct: without the node's page cache.
    boot: place in the boot order, from 1; 0: none.  discard: what the guest gives up is given back.
    secret: QEMU's object that holds the key of an encrypted image.
    offset: the byte of a raw image at which the disk begins.
    """

    name: str
    iface: str
    position: int
    format: str = "raw"
    file: str = ""
    driver: str = "file"
    base: str = ""
    readonly: bool = False
    direct: bool = False
    serial: str = ""
    boot: int = 0
    discard: bool = True
    secret: str = ""
    offset: int = 0

    @property
    def is_disk(self) -> bool:
        """Whether it is a disk, not a CD drive."""
        return self.name.startswith("hdd")


class NicSpec(NamedTuple):
    """A network card; tap: descriptor of its tap device.  model: virtio, e1000 or rtl."""

    name: str
    mac: str
    tap: int
    model: str = "virtio"
    boot: int = 0
    connected: bool = True


class SerialSpec(NamedTuple):
    """A serial port: the words of its character device, without the id."""

    name: str
    chardev: str


class Sockets(NamedTuple):
    """Descriptors of listening sockets that QEMU is given; channels: in the order of the spec's."""

    monitor: int
    agent: int
    console: int
    channels: tuple[int, ...] = ()

    @property
    def every(self) -> tuple[int, ...]:
        """All of them."""
        return (self.monitor, self.agent, self.console, *self.channels)


class Remote(NamedTuple):
    """The remote display.  port 0: the first that is free.  password: one must be set."""

    address: str
    port: int
    password: bool


class UsbSpec(NamedTuple):
    """A USB device of the node.  file: what QEMU opens; descriptor: what is behind that."""

    name: str
    file: str
    descriptor: int


class PciSpec(NamedTuple):
    """A PCI device of the node.  address: with its domain; nodes: /dev/vfio/... that QEMU opens."""

    name: str
    address: str
    nodes: tuple[str, ...] = ()


class Firmware(NamedTuple):
    """UEFI: the code, and what to open for the variables.  secure: for secure boot."""

    code: str
    variables: str
    secure: bool = False


class MachineSpec(NamedTuple):
    """A virtual machine.

    cpus: that it starts with; max_cpus: with those that may be added.  memory: MiB; max_memory.
    files: descriptors that drives and firmware name as /dev/fdset/N.
    secrets: objects that hold a key, each with the descriptor that the key is read from.
    told: what the inside is told by fw_cfg, in base64.  incoming: it goes on from a saved state.
    cpu_model: of QEMU; "": the node's own with KVM, else all that can be emulated.  cpu_features:
    those that are on or off whatever it says.  channels: names of ports beside the agent's.
    usb_devices, pci_devices: of the node.  tpm: descriptor of the way to its TPM; -1: it has none.
    hugepages: the guest's memory is taken from the node's huge pages.
    memory_lock: neither that nor QEMU's own is ever swapped out.
    """

    uuid: str
    name: str
    chipset: str
    type: str
    accelerator: str
    cpus: int
    max_cpus: int
    memory: int
    max_memory: int
    sockets: int = 1
    video: int = 16
    usb: bool = False
    sound: bool = False
    usb_devices: tuple[UsbSpec, ...] = ()
    pci_devices: tuple[PciSpec, ...] = ()
    nested: bool = False
    cpu_model: str = ""
    cpu_features: tuple[tuple[str, bool], ...] = ()
    channels: tuple[str, ...] = ()
    boot_menu: bool = False
    remote: Remote | None = None
    firmware: Firmware | None = None
    drives: tuple[DriveSpec, ...] = ()
    nics: tuple[NicSpec, ...] = ()
    serials: tuple[SerialSpec, ...] = ()
    files: tuple[int, ...] = ()
    secrets: tuple[tuple[str, int], ...] = ()
    told: str = ""
    incoming: bool = False
    tpm: int = -1
    hugepages: bool = False
    memory_lock: bool = False


def memory_of(config: Config) -> int:
    """Return the memory in MiB."""
    pages = config.memory.physpages
    if pages is None or pages.limit >= UNLIMITED:
        return DEFAULT_MEMORY
    return max(1, pages.limit * PAGE_SIZE // MIB)


def cpus_of(config: Config) -> int:
    """Return the number of CPUs."""
    return config.cpu.cpus or 1


def boot_places(config: Config) -> dict[str, int]:
    """Return {device: place in the boot order, from 1}.

    Unset: disks, then CD drives, then cards.
    """
    names = config.machine.boot
    if not names:
        drives = [drive.name for drive in config.machine.drives if drive.enabled]
        cards = [nic for nic in config.network.interfaces if nic.ifname != "venet0"]
        disks = sorted(name for name in drives if name.startswith("hdd"))
        others = sorted(name for name in drives if not name.startswith("hdd"))
        names = (*disks, *others, *(f"net{index}" for index in range(len(cards))))
    return {name: place for place, name in enumerate(names, 1)}


def from_config(
    uuid: str, name: str, config: Config, *, cpus: int, accelerator: str
) -> MachineSpec:
    """Return the machine that CONFIG means, without drives, cards and ports.

    cpus: processors of the node, which bound what may be added while it runs.
    """
    machine = config.machine
    wanted, memory = cpus_of(config), memory_of(config)
    most = max(wanted, cpus, 8) if machine.cpu_hotplug else wanted
    sockets = min(machine.sockets, most)
    return MachineSpec(
        uuid=uuid,
        name=name,
        chipset=machine.chipset,
        type=machine.type,
        accelerator=accelerator,
        cpus=wanted,
        max_cpus=-(-most // sockets) * sockets,
        memory=memory,
        max_memory=max(2 * memory, 4096) if machine.mem_hotplug else memory,
        sockets=sockets,
        video=machine.video,
        usb=machine.usb or machine.vnc_mode != "off" or bool(machine.usb_devices),
        sound=machine.sound,
        nested=machine.nested,
        cpu_model=machine.cpu_model,
        cpu_features=tuple((each.name, each.on) for each in machine.cpu_features),
        channels=machine.channels,
        boot_menu=machine.boot_menu,
        hugepages=machine.hugepages,
        memory_lock=machine.memory_lock,
        remote=_remote(config),
    )


def _remote(config: Config) -> Remote | None:
    machine = config.machine
    if machine.vnc_mode == "off":
        return None
    port = machine.vnc_port if machine.vnc_mode == "manual" else 0
    return Remote(machine.vnc_address, port, not machine.vnc_open)


class Layout(NamedTuple):
    """How a running machine is put together, as a saved state of it must find it again.

    plugged: CPUs that were added while it ran.  dimms: memory that was added, in MiB.
    hugepages: where its memory comes from; a saved state fits either way.
    channels: its ports beside the agent's; None: as configured (a state of an earlier version).
    settings: key and text of vm.conf as it was started with, where it says something else now.
    usb: whether it has a USB controller; None: as configured.
    """

    type: str
    cpus: int
    max_cpus: int
    memory: int
    max_memory: int
    plugged: int = 0
    dimms: tuple[int, ...] = ()
    hugepages: bool = False
    channels: tuple[str, ...] | None = None
    settings: tuple[tuple[str, str], ...] = ()
    usb: bool | None = None

    @classmethod
    def from_json(cls, data: object) -> Layout:
        """Read what `_asdict` made; raises ValueError for anything else."""
        try:
            values = dict(data)  # type: ignore[call-overload]
            values["dimms"] = tuple(int(size) for size in values["dimms"])
            if values.get("channels") is not None:
                values["channels"] = Channels().parse(" ".join(values["channels"]))
            pairs = values.get("settings", ())
            values["settings"] = tuple((str(key), str(text)) for key, text in pairs)
            return cls(**values)
        except (TypeError, KeyError, ValueError, BadValue) as error:
            raise ValueError(f"it is no layout of a virtual machine: {error}") from error


def layout_of(spec: MachineSpec) -> Layout:
    """Return the layout of a machine that was just started."""
    made = Layout(spec.type, spec.cpus, spec.max_cpus, spec.memory, spec.max_memory)
    return made._replace(hugepages=spec.hugepages, channels=spec.channels, usb=spec.usb)


def laid_out(spec: MachineSpec, layout: Layout) -> MachineSpec:
    """Return SPEC put together as LAYOUT says."""
    return spec._replace(
        type=layout.type,
        cpus=layout.cpus,
        max_cpus=layout.max_cpus,
        memory=layout.memory,
        max_memory=layout.max_memory,
        channels=spec.channels if layout.channels is None else layout.channels,
        usb=spec.usb if layout.usb is None else layout.usb,
    )
