"""The node as XML and figures: capabilities, processors, memory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from pyvz.errors import Unsupported
from pyvz.linux import hugepools
from pyvz.model.grammar_machine import INTERFACES
from pyvz.operations import query
from pyvz.operations.node import Node
from pyvz.units import KIB, PAGE_SIZE
from pyvz.vm import cpumodel, firmware, machinetype, tpm
from pyvz.vm.commandline import PROGRAM
from pyvz.vm.firmware import Ovmf

# element -> name of an entry -> file below /sys/class/dmi/id that everybody may read
_SMBIOS: Final = {
    "bios": {"vendor": "bios_vendor", "version": "bios_version", "date": "bios_date"},
    "system": {
        "manufacturer": "sys_vendor", "product": "product_name", "version": "product_version",
    },
}  # fmt: skip
_TICKS: Final = 10**9 // os.sysconf("SC_CLK_TCK")  # nanoseconds of one tick in /proc/stat


def text_of(element: Element) -> str:
    """Return an element as the text that clients get."""
    indent(element)
    return tostring(element, encoding="unicode") + "\n"


def capabilities(node: Node) -> str:
    """Return what can be run here.

    Virtual machines come first, as virt-install takes the first guest where nothing is said, and of
    the types the last one (reference/libvirt-rpc.md, 6.1).
    """
    top = Element("capabilities")
    host = SubElement(top, "host")
    SubElement(host, "uuid").text = str(query.node_info(node)["ID"])
    cpu = SubElement(host, "cpu")
    SubElement(cpu, "arch").text = os.uname().machine
    count = str(os.cpu_count() or 1)
    SubElement(cpu, "topology", sockets="1", dies="1", cores=count, threads="1")
    sizes = (PAGE_SIZE // KIB, *hugepools.sizes())
    for size in sizes:
        SubElement(cpu, "pages", unit="KiB", size=str(size))
    features = SubElement(host, "migration_features")
    SubElement(features, "live")
    transports = SubElement(features, "uri_transports")
    SubElement(transports, "uri_transport").text = "vzmigr"
    cells = SubElement(SubElement(host, "topology"), "cells", num="1")
    cell = SubElement(cells, "cell", id="0")
    SubElement(cell, "memory", unit="KiB").text = str(memory() // KIB)
    for size in sizes:
        whole = memory() // PAGE_SIZE if size * KIB == PAGE_SIZE else hugepools.total(size)
        SubElement(cell, "pages", unit="KiB", size=str(size)).text = str(whole)
    cpus = SubElement(cell, "cpus", num=count)
    for number in range(int(count)):
        SubElement(
            cpus,
            "cpu",
            id=str(number),
            socket_id="0",
            die_id="0",
            core_id=str(number),
            siblings=str(number),
        )
    for kind in ("hvm", "exe"):
        guest = SubElement(top, "guest")
        SubElement(guest, "os_type").text = kind
        arch = SubElement(guest, "arch", name=os.uname().machine)
        SubElement(arch, "wordsize").text = "64"
        if kind == "hvm":
            _machine_types(node, arch)
        for name in ("parallels", "vz"):
            SubElement(arch, "domain", type=name)
    return text_of(top)


def _machine_types(node: Node, arch: Element) -> None:
    """Add the types of machines: virt-manager shows none whose type is not listed."""
    listed = machinetype.known()
    for name, alias in listed:
        element = SubElement(arch, "machine")
        element.text = name
        if alias:
            element.set("canonical", alias)
    used = {config.machine.type for _, config, _ in node.registry.snapshot()}
    for name in sorted(used - {"", *(each.name for each in listed)}):
        SubElement(arch, "machine").text = name


def domain_capabilities(_node: Node, arch: str | None, machine: str | None) -> str:
    """Return what a domain can have here."""
    top = Element("domainCapabilities")
    SubElement(top, "path").text = f"/usr/bin/{PROGRAM}"  # the schema wants one
    SubElement(top, "domain").text = "vz"
    SubElement(top, "machine").text = machine or "q35"
    SubElement(top, "arch").text = arch or os.uname().machine
    SubElement(top, "vcpu", max=str(os.cpu_count() or 1))
    _firmware(SubElement(top, "os", supported="yes"))
    _processors(top)
    devices = SubElement(top, "devices")
    disk = SubElement(devices, "disk", supported="yes")
    _enumeration(disk, "diskDevice", "disk", "cdrom")
    _enumeration(disk, "bus", *INTERFACES)
    _enumeration(disk, "model", "virtio")
    graphics = SubElement(devices, "graphics", supported="yes")
    _enumeration(graphics, "type", "vnc")
    video = SubElement(devices, "video", supported="yes")
    _enumeration(video, "modelType", "vga")
    random = SubElement(devices, "rng", supported="yes")
    _enumeration(random, "model", "virtio")
    _enumeration(random, "backendModel", "random")
    with suppress(Unsupported):
        tpm.check()
        chip = SubElement(devices, "tpm", supported="yes")
        _enumeration(chip, "model", "tpm-crb")
        _enumeration(chip, "backendModel", "emulator")
        _enumeration(chip, "backendVersion", "2.0")
    SubElement(SubElement(top, "features"), "backup", supported="yes")
    return text_of(top)


def _firmware(system: Element) -> None:
    """Add by what machines can boot: UEFI where its files are installed."""
    found = {secure: _ovmf(secure=secure) for secure in (False, True)}
    there = [each for each in found.values() if each is not None]
    _enumeration(system, "firmware", "bios", *(["efi"] if there else []))
    loader = SubElement(system, "loader", supported="yes" if there else "no")
    if there:
        for each in there:
            SubElement(loader, "value").text = os.fspath(each.code)
        _enumeration(loader, "type", "pflash")
        _enumeration(loader, "readonly", "yes")
        _enumeration(loader, "secure", "no", *(["yes"] if found[True] else []))


def _ovmf(*, secure: bool) -> Ovmf | None:
    with suppress(Unsupported):
        return firmware.find(secure=secure)
    return None


def _processors(top: Element) -> None:
    """Add the ways to say which processor a machine has, and the models that can be named."""
    cpu = SubElement(top, "cpu")
    for mode in ("host-passthrough", "maximum", "host-model"):
        SubElement(cpu, "mode", name=mode, supported="yes")
    models = cpumodel.known()
    named = SubElement(cpu, "mode", name="custom", supported="yes" if models else "no")
    for name in models:
        SubElement(named, "model", usable="unknown", vendor="unknown").text = name


def _enumeration(parent: Element, name: str, *values: str) -> None:
    element = SubElement(parent, "enum", name=name)
    for value in values:
        SubElement(element, "value").text = value


def sysinfo() -> str:
    """Return what the firmware says of the node (SMBIOS), as far as the kernel shows it."""
    top = Element("sysinfo", type="smbios")
    known = firmware_says()
    for tag, names in _SMBIOS.items():
        part = SubElement(top, tag)
        for name, file in names.items():
            if file in known:
                SubElement(part, "entry", name=name).text = known[file]
    return text_of(top)


def firmware_says() -> dict[str, str]:
    """Return the entries of SMBIOS that everybody may read, by their names in sysfs."""
    found: dict[str, str] = {}
    for file in (file for names in _SMBIOS.values() for file in names.values()):
        with suppress(OSError):
            text = Path("/sys/class/dmi/id", file).read_text(errors="replace").strip()
            found[file] = "".join(char for char in text if char.isprintable())
    return found


def memory() -> int:
    """Return the bytes of memory that the node has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def meminfo() -> dict[str, int]:
    """Return /proc/meminfo in bytes (proc_meminfo(5))."""
    with open("/proc/meminfo", encoding="ascii") as file:
        words = [line.split() for line in file]
    return {name.rstrip(":"): int(value) * KIB for name, value, *unit in words if unit}


def megahertz() -> int:
    """Return the clock of the first processor, 0 where nobody tells."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        found = re.search(r"^cpu MHz\s*:\s*(\d+)", file.read(), re.MULTILINE)
    return int(found[1]) if found else 0


def cpu_times() -> dict[str, int]:
    """Return the times of all processors together, in nanoseconds (proc_stat(5))."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, idle, wait, *_ = (int(word) for word in file.readline().split()[1:])
    return {
        "kernel": system * _TICKS, "user": (user + nice) * _TICKS, "idle": idle * _TICKS,
        "iowait": wait * _TICKS,
    }  # fmt: skip


def counted(figures: Mapping[str, int], room: int) -> dict[str, Any]:
    """Return figures in the form "count first": with no room only their number."""
    found = [{"field": name, "value": value} for name, value in figures.items()]
    return {"params": found[:room] if room else [], "nparams": len(found)}
