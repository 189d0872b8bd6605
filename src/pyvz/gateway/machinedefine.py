"""The part of a domain's XML that only virtual machines have, read (machinexml.py writes it).

Drives are taken in their order; where on its bus each is, we choose.  An image is named by its
path, and has to be there.  An element that we cannot keep is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Final, NamedTuple
from xml.etree.ElementTree import Element

from pyvz.errors import BadValue
from pyvz.gateway import domaingrammar, failure
from pyvz.gateway.domaingrammar import check
from pyvz.gateway.failure import Failure
from pyvz.gateway.notes import parsed
from pyvz.model.grammar_machine import AGENT_CHANNEL, INTERFACES
from pyvz.model.grammar_processor import Feature, Features

_BUSES: Final = {"hd": "ide", "vd": "virtio", "sd": "scsi"}
_BOOT: Final = {"hd": "hdd", "cdrom": "cdrom", "network": "net"}
CRASH_ACTIONS: Final = {"restart": "restart", "preserve": "pause"}  # libvirt's words -> ours
_USUAL: Final = (AGENT_CHANNEL, "com.redhat.spice.0")
_OWN_SOCKET: Final = re.compile(r"/vm/[0-9a-f-]{36}/channel-\d\.sock$")
_LOOPBACK: Final = "127.0.0.1"


class Disk(NamedTuple):
    """A disk, or a CD drive.  source: path of its image or (block) device; "": no disc in it.

    target: its name on the bus.  bus and format are "" where nothing is said of them.
    """

    cdrom: bool
    target: str = ""
    bus: str = ""
    format: str = ""
    source: str = ""
    block: bool = False
    serial: str = ""
    boot: int = 0

    @property
    def place(self) -> str:
        """The bus of a new one: what is said, else what its name says."""
        return self.bus or _BUSES.get(self.target[:2], "scsi")


class Display(NamedTuple):
    """The remote display.  port 0: any; password "": none."""

    address: str
    port: int
    password: str


class Machine(NamedTuple):
    """What only a machine has.  boot: kinds of devices (hdd, cdrom, net) in their order.

    cpu: QEMU's model of the processor; "": the best that there is.  features: as VM_CPU_FEATURES.
    channels: names of ports beside the agent's.  crash: what follows one ("": as it was).
    sockets: over which all its CPUs are spread; 0: as it comes, with room for more CPUs.
    card_places: of each card its MAC address ("": any) and its place in the boot order (0: none).
    """

    disks: tuple[Disk, ...]
    display: Display | None
    efi: bool
    boot: tuple[str, ...]
    cpu: str = ""
    secure_boot: bool = False
    tpm: bool = False
    features: str = ""
    channels: tuple[str, ...] = ()
    crash: str = ""
    hugepages: bool = False
    memory_lock: bool = False
    sockets: int = 0
    card_places: tuple[tuple[str, int], ...] = ()


def read(text: str) -> Machine:
    """Return what a description asks for; raises Failure (27, 67)."""
    top = parsed(text, "description of the domain")
    system, devices = top.find("os"), top.find("devices")
    parts = list(devices) if devices is not None else []
    displays = [each for each in parts if each.tag == "graphics"]
    if len(displays) > 1:
        raise Failure(failure.UNSUPPORTED, "A virtual machine has one <graphics> at most")
    return Machine(
        disks=tuple(disk(each) for each in parts if each.tag == "disk"),
        display=_display(displays[0]) if displays else None,
        efi=_efi(system),
        boot=_boot(system),
        cpu=_processor(top.find("cpu")),
        secure_boot=_secure_boot(system),
        tpm=any(each.tag == "tpm" for each in parts),
        features=_features(top.findall("cpu/feature")),
        crash=CRASH_ACTIONS.get((top.findtext("on_crash") or "").strip(), ""),
        hugepages=top.find("memoryBacking/hugepages") is not None,
        memory_lock=top.find("memoryBacking/locked") is not None,
        sockets=_sockets(top),
        channels=tuple(_channels(each for each in parts if each.tag == "channel")),
        card_places=tuple(_place(each) for each in parts if each.tag == "interface"),
    )


def disk(element: Element) -> Disk:
    """Return a disk or CD drive; raises Failure (27, 67)."""
    check(element, domaingrammar.MACHINE, "devices/disk")
    kind, device = element.get("type") or "file", element.get("device") or "disk"
    driver, target = element.find("driver"), element.find("target")
    form = (driver.get("type") if driver is not None else None) or ""
    path = _source(element, kind)
    if not path and device == "disk":
        raise Failure(failure.XML, "A <disk> names no image: it has no <source>")
    return Disk(
        cdrom=device == "cdrom",
        target=(target.get("dev") or "") if target is not None else "",
        bus=_bus(target),
        format=form,
        source=path,
        block=kind == "block",
        serial=(element.findtext("serial") or "").strip(),
        boot=_order(element.find("boot")),
    )


def _source(element: Element, kind: str) -> str:
    source = element.find("source")
    path = (source.get("dev" if kind == "block" else "file") or "") if source is not None else ""
    if path and (not path.startswith("/") or not path.isprintable()):
        raise Failure(failure.XML, f"'{path}' is no path of an image: it begins with /")
    return path


def _bus(target: Element | None) -> str:
    bus = (target.get("bus") if target is not None else None) or ""
    if bus and bus not in INTERFACES:
        raise Failure(
            failure.UNSUPPORTED,
            f"A disk on the bus '{bus}' is not supported: {', '.join(INTERFACES)} are",
        )
    return bus


def _order(boot: Element | None) -> int:
    text = (boot.get("order") or "") if boot is not None else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0


def _place(card: Element) -> tuple[str, int]:
    mac = card.find("mac")
    return (mac.get("address") or "").lower() if mac is not None else "", _order(card.find("boot"))


def _display(element: Element) -> Display:
    if element.get("type") != "vnc":
        raise Failure(
            failure.UNSUPPORTED, f"<graphics type='{element.get('type')}'> is not supported; vnc is"
        )
    inner = element.find("listen")
    address = element.get("listen") or (inner.get("address") if inner is not None else None)
    address = "0.0.0.0" if address == "" else address or _LOOPBACK  # noqa: S104  as asked for
    password, port = element.get("passwd") or "", element.get("port") or "-1"
    try:
        loopback = ip_address(address).is_loopback
        number = 0 if element.get("autoport") == "yes" else max(0, int(port))
    except ValueError as error:
        raise Failure(failure.XML, f"<graphics>: {error}") from error
    if not password and not loopback and element.get("passwd") is not None:
        raise Failure(failure.XML, "<graphics>: the password is empty")
    return Display(address, number, password)


def _secure_boot(system: Element | None) -> bool:
    if system is None:
        return False
    loader = system.find("loader")
    features = {each.get("name") for each in system.iterfind("firmware/feature[@enabled='yes']")}
    return "secure-boot" in features or (loader is not None and loader.get("secure") == "yes")


def _efi(system: Element | None) -> bool:
    if system is None:
        return False
    loader = system.find("loader")
    return system.get("firmware") == "efi" or (
        loader is not None and loader.get("type") == "pflash"
    )


def _processor(element: Element | None) -> str:
    """Return the model that is named; the modes host-* and maximum mean the best that there is."""
    if element is None:
        return ""
    model = (element.findtext("model") or "").strip()
    mode = element.get("mode") or ("custom" if model else "host-passthrough")
    if mode == "custom" and not model:
        raise Failure(failure.XML, "<cpu mode='custom'> names no <model>")
    if mode != "custom" and model:
        raise Failure(failure.UNSUPPORTED, f"<cpu mode='{mode}'> with a <model> is not supported")
    return model


def _sockets(top: Element) -> int:
    """Return in how many sockets the processors are, 0 where nothing is said; raises Failure."""
    topology = top.find("cpu/topology")
    if topology is None:
        return 0
    texts = [topology.get("sockets") or "", topology.get("cores") or "", top.findtext("vcpu") or ""]
    if not all(text.strip().isdecimal() for text in texts):
        raise Failure(failure.XML, "<cpu/topology> needs sockets and cores, and <vcpu> a number")
    sockets, cores, cpus = map(int, texts)
    if not sockets or sockets * cores != cpus:
        raise Failure(
            failure.UNSUPPORTED,
            f"<cpu/topology>: {sockets} sockets of {cores} cores are not the {cpus} of <vcpu>",
        )
    return sockets


def _features(elements: list[Element]) -> str:
    """Return the features of the processor in our words; raises Failure (27, 67)."""
    found: list[Feature] = []
    for each in elements:
        policy, name = each.get("policy") or "require", each.get("name") or ""
        try:
            found += Features().parse(f"{policy}:{name}")
        except BadValue as error:
            raise Failure(failure.UNSUPPORTED, f"<feature name='{name}'>: {error}") from error
    return Features().format(tuple(found))


def _channels(elements: Iterable[Element]) -> Iterator[str]:
    """Yield the names of channels; those of the agent and of SPICE go without saying."""
    for each in elements:
        target, source = each.find("target"), each.find("source")
        name = (target.get("name") or "") if target is not None else ""
        if name in _USUAL:
            continue
        path = (source.get("path") or "") if source is not None else ""
        if each.get("type") != "unix" or (path and not _OWN_SOCKET.search(path)):
            raise Failure(
                failure.UNSUPPORTED,
                f"The channel '{name}' cannot lead there: it is a <channel type='unix'> without a"
                " path, which clients open as a stream",
            )
        yield name


def _boot(system: Element | None) -> tuple[str, ...]:
    names = [each.get("dev") or "" for each in system.findall("boot")] if system is not None else []
    for name in names:
        if name not in _BOOT:
            raise Failure(failure.UNSUPPORTED, f"<boot dev='{name}'> is not supported")
    return tuple(_BOOT[name] for name in names)
