"""Everything about one virtual machine, in the form of `prlctl list -i -j`."""

from __future__ import annotations

import os
import re
from contextlib import suppress

from pyvz.errors import VZError
from pyvz.model.config import Config
from pyvz.model.grammar_machine import Drive, SerialPort
from pyvz.model.grammar_processor import Features
from pyvz.operations import fields, machinedrives, machineguest, netinfo
from pyvz.operations.fields import ALIVE, Source
from pyvz.units import KIB
from pyvz.vm import channels
from pyvz.vm.spec import boot_places, cpus_of, memory_of

Row = dict[str, object]
_PATIENCE = 3.0  # seconds for the agent to say which one it is
_VERSION = re.compile(r"[0-9A-Za-z.+~()-]{1,40}")
_CHIPSETS = {"q35": "q35", "piix": "piix"}


def info(source: Source, *, full: bool) -> Row:
    """Return the lines of one machine, in their order."""
    env, config = source.env, source.config
    settings = config.machine
    answer: Row = {
        "ID": env.uuid,
        "EnvID": env.envid,
        "Name": env.name,
        "Description": config.identity.description or "",
        "Type": "VM",
        "Chipset": _CHIPSETS[settings.chipset],
        "State": str(source.status),
        "OS": fields.distribution(config) or "",
        "Template": "yes" if config.identity.type == "template" else "no",
        "Uptime": str(int(fields.uptime(source))),
        "Home": os.fspath(env.home),
        "Backup path": "",
        "Owner": "root",
        "GuestTools": _tools(source),
        "GuestTools autoupdate": _on(settings.tools_update),
        "Autostart": {"yes": "on", "auto": "auto"}.get(str(config.boot.onboot), "off"),
        "Autostop": str(config.boot.autostop or source.node.config().ve_stop_mode),
        "Autocompact": _on(config.disk.autocompact),
        **({"Cloud-init": "on"} if settings.cloud_init else {}),
        "Boot order": "".join(f"{name} " for name in boot_places(config)),
        "EFI boot": _on(settings.efi),
        **({"EFI secure boot": "on"} if settings.secure_boot else {}),
        "Allow select boot device": _on(settings.boot_menu),
        "External boot device": "",
        "On guest crash": settings.on_crash,
        "Remote display": _display(source),
        "Remote display state": "running" if _displayed(source) else "stopped",
        "Hardware": _hardware(source, full=full),
        "SmartMount": {"enabled": False},
        "Disabled Windows logo": "on",
        "Nested virtualization": _on(settings.nested),
        "Offline management": {"enabled": False},
        "Hostname": config.network.hostname or "",
        "DNS Servers": " ".join(config.network.nameservers or ()),
        "Search Domains": " ".join(config.network.searchdomains or ()),
    }
    if full:
        enabled = "yes" if config.boot.ha_enable is not False else "no"
        answer["High Availability"] = {"enabled": enabled, "prio": config.boot.ha_prio or 0}
        answer["Network Shaping"] = netinfo.shaping(config)
    return answer


def _on(value: bool) -> str:  # noqa: FBT001
    return "on" if value else "off"


def _tools(source: Source) -> Row:
    """The guest tools are the guest's own agent: whether it is there just now, and which one."""
    if source.status not in ALIVE:
        return {"state": "not_installed"}
    told: Row = {"state": "not_installed"}
    with suppress(VZError):
        if channels.has_agent(source.node.machines.monitor(source.env.uuid)):
            told = {"state": "installed"}
            with machineguest.agent(source.node, source.env, patience=_PATIENCE) as talk:
                answer = talk.call("guest-info", timeout=_PATIENCE)
            version = str(answer.get("version", "") if isinstance(answer, dict) else "")
            if _VERSION.fullmatch(version):
                told["version"] = version
    return told


def _displayed(source: Source) -> bool:
    return source.status in ALIVE and source.config.machine.vnc_mode != "off"


def _display(source: Source) -> Row:
    settings = source.config.machine
    shown: Row = {"mode": settings.vnc_mode}
    port = settings.vnc_port if settings.vnc_mode == "manual" else 0
    if _displayed(source):
        with suppress(VZError, LookupError, ValueError):
            monitor = source.node.machines.monitor(source.env.uuid)
            port = int(monitor.execute("query-vnc")["service"])
    if port:
        shown["port"] = port
    return shown | {"address": settings.vnc_address}


def _hardware(source: Source, *, full: bool) -> Row:
    config = source.config
    settings = config.machine
    hardware: Row = {
        "cpu": _cpu(config),
        "memory": _memory(config),
        "video": {
            "size": f"{settings.video}Mb", "3d acceleration": "off", "vertical sync": "yes",
        },
        "memory_guarantee": {
            "value": "auto" if config.memory.guarantee is None else f"{config.memory.guarantee}%"
        },
    }  # fmt: skip
    for drive in settings.drives:
        hardware[drive.name] = _drive(source, drive, full=full)
    cards = [nic for nic in config.network.interfaces if nic.ifname != "venet0"]
    for index, nic in enumerate(cards):
        hardware[f"net{index}"] = netinfo.card(nic._replace(ifname=""), full=full)
    for port in settings.serials:
        hardware[port.name] = _port(port)
    if settings.usb or settings.usb_devices:
        hardware["usb0"] = {"enabled": True}
    for device in settings.usb_devices:
        hardware[device.name] = {"enabled": True, "device": device.device}
    for each in settings.pci_devices:
        hardware[each.name] = {"enabled": True, "device": each.device}
    if settings.sound:
        hardware["sound0"] = {"enabled": True}
    if settings.tpm:
        hardware["tpm0"] = {"enabled": True}
    return hardware


def _memory(config: Config) -> Row:
    settings = config.machine
    memory: Row = {"size": f"{memory_of(config)}Mb", "hotplug": settings.mem_hotplug}
    marks = (("hugepages", settings.hugepages), ("locked", settings.memory_lock))
    return memory | {name: True for name, on in marks if on}


def _cpu(config: Config) -> Row:
    count = cpus_of(config)
    cpu: Row = {
        "sockets": config.machine.sockets, "cpus": count,
        "cores": max(1, count // config.machine.sockets), "hotplug": config.machine.cpu_hotplug,
        "accl": "high", "mode": 64, "cpuunits": config.cpu.units or 1000,
    }  # fmt: skip
    if config.machine.cpu_model:
        cpu["model"] = config.machine.cpu_model
    if config.machine.cpu_features:
        cpu["features"] = Features().format(config.machine.cpu_features)
    return cpu | fields.cpu_limits(config)


def _drive(source: Source, drive: Drive, *, full: bool) -> Row:
    shown: Row = {"enabled": drive.enabled, "port": f"{drive.iface}:{drive.position}"}
    if drive.device:
        shown["real"] = drive.device
    else:
        path = machinedrives.source_of(source.env, drive) if drive.image else ""
        shown["image"] = os.fspath(path)
    if drive.is_disk:
        shown |= {"type": "plain" if drive.format == "raw" else "expanded"}
        shown["size"] = f"{drive.size * KIB >> 20}Mb"
    shown["state"] = "connected" if drive.is_disk or _has_disc(drive) else "disconnected"
    if drive.iface == "scsi":
        shown["subtype"] = drive.subtype or "virtio-scsi"
    if drive.is_disk and not drive.autocompact:
        shown["autocompact"] = "off"
    if drive.serial and full:
        shown["serial"] = drive.serial
    if drive.keyid:
        shown["keyid"] = drive.keyid
    return shown


def _has_disc(drive: Drive) -> bool:
    return drive.connected and bool(drive.image or drive.device)


def _port(port: SerialPort) -> Row:
    shown: Row = {"enabled": port.enabled}
    if port.kind:
        words = {"file": "output", "tcp": "socket-tcp", "udp": "socket-udp"}
        shown[words.get(port.kind, port.kind)] = port.target
    return shown | {"state": "connected"}
