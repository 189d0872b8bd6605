"""Parameters that only virtual machines have (prlctl.md section 3, rows marked VM)."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address

from pyvz.errors import BadValue
from pyvz.model.grammar import Choice, Integer, Text, YesNo
from pyvz.model.grammar_machine import (
    BootDevices,
    Channels,
    Drives,
    PciDevices,
    SerialPorts,
    UsbDevices,
)
from pyvz.model.grammar_processor import Features
from pyvz.model.grammar_ssh import SshKeys
from pyvz.model.param import MACHINES, Option, Param, tools
from pyvz.units import MIB, parse_size

_ON_CRASH = Choice(("pause", "restart"))
_VNC_PORTS = Integer(5900, 65535)
_CPU_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class IpAddress:
    """One IP address."""

    def parse(self, text: str) -> str:
        """Return the address in its usual form."""
        try:
            return str(ip_address(text.strip()))
        except ValueError:
            raise BadValue(f"'{text}' is not an IP address") from None

    def format(self, value: str) -> str:
        """Return the address."""
        return value


class CpuModel:
    """The name of a model of processors as QEMU has it, or nothing."""

    def parse(self, text: str) -> str:
        """Return the name."""
        name = text.strip()
        if name and not _CPU_MODEL.fullmatch(name):
            raise BadValue(
                f"'{text}' is not the name of a processor (qemu-system-x86_64 -cpu help)"
            )
        return name

    def format(self, value: str) -> str:
        """Return the name."""
        return value


def _cpu_model(text: str) -> str:
    return "" if text.strip() == "host" else CpuModel().parse(text)


def _option(name: str, metavar: str, about: str, **more: object) -> dict[str, tuple[Option, ...]]:
    return tools(prlctl=(Option(name, metavar, about, kinds=MACHINES, **more),))  # type: ignore[arg-type]


def _switch(
    field: str, key: str, option: str, about: str, short: str = "", *, default: bool = False
) -> Param[bool]:
    """Return a parameter that is on or off; SHORT: what its option says, if not the same."""
    options = _option(option, "on|off", short or about)
    return Param(field, key, YesNo(), default=default, help=about, options=options)


def _crash_action(text: str) -> str:
    """Read pause|restart[:no-report]; reports are the vendor's."""
    word, _, rest = text.partition(":")
    if rest not in {"", "no-report"}:
        raise BadValue(f"'{text}' is not one of pause, restart, restart:no-report")
    return _ON_CRASH.parse(word)


def _or_none(grammar: Channels | Features | SshKeys) -> Callable[[str], object]:
    """Return what takes "none" for an empty list."""
    return lambda text: () if text.strip() == "none" else grammar.parse(text)


def _video(text: str) -> int:
    size = parse_size(text, default_unit=MIB) // MIB
    if not 1 <= size <= 256 or size & (size - 1):
        raise BadValue(f"'{text}': the video memory is 1 to 256 MiB, a power of 2")
    return size


DRIVES = Param("machine.drives", "VM_DRIVES", Drives(), (), "disks and CD drives", local=True)
SERIALS = Param("machine.serials", "VM_SERIALS", SerialPorts(), (), "serial ports", local=True)
USB = Param("machine.usb", "VM_USB", YesNo(), default=False, help="a USB controller with a tablet")
SOUND = Param("machine.sound", "VM_SOUND", YesNo(), default=False, help="a sound card")
USB_DEVICES = Param(
    "machine.usb_devices", "VM_USB_DEVICES", UsbDevices(), (), "USB devices of the node", local=True
)
PCI_DEVICES = Param(
    "machine.pci_devices", "VM_PCI_DEVICES", PciDevices(), (), "PCI devices of the node", local=True
)
BOOT = Param(
    "machine.boot",
    "VM_BOOT",
    BootDevices(),
    (),
    "devices to boot from, in this order; unset: disks, then CD drives, then network",
    _option("device-bootorder", "NAMES", "order of boot devices, like 'cdrom0 hdd0'"),
    local=True,
)
SOCKETS = Param(
    "machine.sockets",
    "VM_SOCKETS",
    Integer(1, 64),
    1,
    "number of CPU sockets; the CPUs are spread over them",
    _option("cpu-sockets", "N", "number of CPU sockets"),
)
CPU_HOTPLUG = _switch(
    "machine.cpu_hotplug",
    "VM_CPU_HOTPLUG",
    "cpu-hotplug",
    "CPUs can be added while it runs",
    default=True,
)
MEM_HOTPLUG = _switch(
    "machine.mem_hotplug",
    "VM_MEM_HOTPLUG",
    "mem-hotplug",
    "memory can be added while it runs",
    default=True,
)
VIDEO = Param(
    "machine.video",
    "VM_VIDEO",
    Integer(1, 256),
    16,
    "video memory in MiB",
    _option("videosize", "MiB", "video memory", parse=_video),
)
EFI = _switch(
    "machine.efi", "VM_EFI", "efi-boot", "boot by UEFI instead of the BIOS", "boot by EFI"
)
SECURE_BOOT = _switch(
    "machine.secure_boot",
    "VM_SECURE_BOOT",
    "efi-secure-boot",
    "UEFI starts only what is signed, by the keys that distributions and Windows are signed with",
    "start only what is signed",
)
TPM = _switch("machine.tpm", "VM_TPM", "tpm", "a TPM 2.0, by swtpm", "a TPM 2.0")
HUGEPAGES = _switch(
    "machine.hugepages",
    "VM_HUGEPAGES",
    "hugepages",
    "the guest's memory is taken from the node's huge pages (vm.nr_hugepages)",
    "memory from the node's huge pages",
)
MEMORY_LOCK = Param(
    "machine.memory_lock",
    "VM_MEMORY_LOCK",
    YesNo(),
    default=False,
    help="its memory, and QEMU's, is never swapped out",
    options=_option("memory-lock", "yes|no", "memory that is never swapped out"),
)
BOOT_MENU = _switch(
    "machine.boot_menu",
    "VM_BOOT_MENU",
    "select-boot-device",
    "let people choose the boot device",
    "show a boot menu",
)
CPU_MODEL = Param(
    "machine.cpu_model",
    "VM_CPU_MODEL",
    CpuModel(),
    "",
    "QEMU's model of the processor; empty: the node's own, or all that emulation has",
    _option("cpu-model", "MODEL|host", "the processor that the guest sees", parse=_cpu_model),
)
CPU_FEATURES = Param(
    "machine.cpu_features",
    "VM_CPU_FEATURES",
    Features(),
    (),
    "features that the processor has or has not, whatever its model says",
    _option(
        "cpu-features",
        "FEATURES|none",
        "features turned on (+avx2) and off (-hle)",
        parse=_or_none(Features()),
    ),
)
CHANNELS = Param(
    "machine.channels",
    "VM_CHANNELS",
    Channels(),
    (),
    "ways between node and guest (virtio ports), beside that of the guest agent",
    _option(
        "channels",
        "NAMES|none",
        "ways into the guest beside the agent's, by name",
        parse=_or_none(Channels()),
    ),
)
SSH_KEYS = Param(
    "machine.ssh_keys",
    "VM_SSH_KEYS",
    SshKeys(),
    (),
    "public SSH keys that a machine from a template, or with cloud-init, lets in as root",
    _option(
        "ssh-keys",
        "FILE|none",
        "public keys that let in as root, of a template or by cloud-init",
        parse=_or_none(SshKeys()),
    ),
)
CLOUD_INIT = Param(
    "machine.cloud_init",
    "VM_CLOUD_INIT",
    YesNo(),
    default=False,
    help="it has a CD that tells cloud-init its host name, SSH keys and addresses (NoCloud)",
    options=_option("cloud-init", "yes|no", "tell cloud-init name, keys, addresses (NoCloud)"),
)
CHIPSET = Param(
    "machine.chipset", "VM_CHIPSET", Choice(("q35", "piix")), "q35", "chipset: q35 or piix"
)
MACHINE_TYPE = Param(
    "machine.type",
    "VM_MACHINE",
    Text(),
    "",
    "QEMU's machine type with its version; written at the first start",
    local=True,
)
ON_CRASH = Param(
    "machine.on_crash",
    "VM_ON_CRASH",
    _ON_CRASH,
    "restart",
    "what happens when the guest's kernel crashes",
    _option("on-crash", "pause|restart", "what happens when it crashes", parse=_crash_action),
    live=True,
)
NESTED = _switch(
    "machine.nested",
    "VM_NESTED",
    "nested-virt",
    "virtualization inside (with KVM only)",
    "virtualization inside",
)
VNC_MODE = Param(
    "machine.vnc_mode",
    "VM_VNC",
    Choice(("off", "auto", "manual")),
    "off",
    "remote display: off, auto (a free port) or manual (VM_VNC_PORT)",
    _option("vnc-mode", "auto|manual|off", "remote display"),
)
VNC_PORT = Param(
    "machine.vnc_port",
    "VM_VNC_PORT",
    _VNC_PORTS,
    5900,
    "TCP port of the remote display",
    _option("vnc-port", "N", "port of the remote display"),
    local=True,
)
VNC_ADDRESS = Param(
    "machine.vnc_address",
    "VM_VNC_ADDRESS",
    IpAddress(),
    "0.0.0.0",  # noqa: S104  as the original; nobody gets in without the password
    "address of the node on which the remote display listens",
    _option("vnc-address", "IP", "address of the remote display"),
)
VNC_OPEN = Param(
    "machine.vnc_open",
    "VM_VNC_NOPASSWD",
    YesNo(),
    default=False,
    help="remote display without a password",
    options=_option("vnc-nopasswd", "", "remote display without a password", parse=lambda _: True),
)
AUTOSTART_DELAY = Param(
    "machine.autostart_delay",
    "VM_AUTOSTART_DELAY",
    Integer(0, 86400),
    0,
    "seconds to wait before the start with the node",
    _option("autostart-delay", "SECONDS", "wait before the start with the node"),
)
TOOLS_UPDATE = _switch(
    "machine.tools_update",
    "VM_TOOLS_UPDATE",
    "tools-autoupdate",
    "guest tools are kept fresh (by the guest's own packages)",
    "keep the guest tools fresh",
    default=True,
)
