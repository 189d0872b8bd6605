"""From a MachineSpec to the words of QEMU's command line; pure, held by golden tests.

Drives and cards are made by functions that also serve hot-plugging: QMP takes the same objects
(-blockdev and -device read JSON).  Every device has its fixed place on the bus, so that a saved
state fits, whatever was plugged in before.
"""

from __future__ import annotations

import json
from typing import Any

from pyvz.model.grammar_machine import AGENT_CHANNEL
from pyvz.vm.spec import (
    MEMORY_SLOTS,
    TRANSLATION_CACHE,
    DriveSpec,
    MachineSpec,
    NicSpec,
    Sockets,
    UsbSpec,
)

PROGRAM = "qemu-system-x86_64"
ROOT_PORTS = 16  # cards 0 to 7, then virtio disks 0 to 7
FW_CFG = "opt/io.pyvz/files"  # read by the template's pyvz-guest (template/machinetree.py)
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_MODELS = {"virtio": "virtio-net-pci", "e1000": "e1000", "rtl": "rtl8139"}
_MAIN_MEMORY = "pc.ram"  # as QEMU calls it by itself, so that saved states fit either way
_SOUND = "sound-host"
_VNC_BASE = 5900
_VNC_LAST = 199
HUGE_PAGE = 2 << 20  # bytes

Object = dict[str, Any]


def argv(spec: MachineSpec, sockets: Sockets) -> list[str]:
    """Return the command line of a machine that waits for `cont` (or for its saved state)."""
    words = [PROGRAM, "-name", f"guest={spec.name.replace(',', ',,')},debug-threads=on"]
    words += ["-S", "-nodefaults", "-no-user-config", "-uuid", spec.uuid, "-sandbox", _SANDBOX]
    words += _board(spec)
    words += ["-rtc", "base=utc,driftfix=slew", "-global", "kvm-pit.lost_tick_policy=delay"]
    words += ["-action", "panic=pause"]  # what happens then is ours to say (machineevents.py)
    words += ["-boot", f"menu={'on' if spec.boot_menu else 'off'},strict=on"]
    if spec.told:
        words += ["-fw_cfg", f"name={FW_CFG},string={spec.told}"]
    words += _channel("monitor", sockets.monitor)
    words += ["-mon", "chardev=monitor,mode=control"]
    for descriptor in spec.files:
        words += ["-add-fd", f"fd={descriptor},set={descriptor}"]
    for name, descriptor in spec.secrets:
        words += ["-object", _json(_secret(name, descriptor))]
    words += _firmware(spec) + _tpm(spec) + _sound(spec)
    for device in (*_devices(spec), *_pci_devices(spec)):
        words += ["-device", _json(device)]
    words += _channel("agent", sockets.agent) + _serials(spec, sockets)
    words += ["-device", _json(_port("agent0", "agent", AGENT_CHANNEL))]
    for number, (name, descriptor) in enumerate(zip(spec.channels, sockets.channels, strict=True)):
        words += _channel(f"channel-{number}", descriptor)
        words += ["-device", _json(_port(f"port-{number}", f"channel-{number}", name))]
    for drive in spec.drives:
        for node in blockdevs(drive):
            words += ["-blockdev", _json(node)]
        words += ["-device", _json(drive_device(drive, spec.chipset))]
    for nic in spec.nics:
        words += ["-netdev", f"tap,id=host-{nic.name},fd={nic.tap}"]
        words += ["-device", _json(nic_device(nic, spec.chipset))]
    words += _display(spec)
    if spec.incoming:
        words += ["-incoming", "defer"]
    return words


def _json(value: Object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _secret(name: str, descriptor: int) -> Object:
    """Return the object that holds a key; what is in the command line is only where it is."""
    return {"qom-type": "secret", "id": name, "file": f"/proc/self/fd/{descriptor}"}


def _on(driver: str, id_: str, bus: str, **more: object) -> Object:
    return {"driver": driver, "id": id_, "bus": bus, **more}


def _board(spec: MachineSpec) -> list[str]:
    machine = spec.type or ("q35" if spec.chipset == "q35" else "pc")
    machine += ",usb=off,vmport=off,dump-guest-core=off"
    if spec.firmware is not None:
        machine += ",pflash0=firmware-code,pflash1=firmware-variables"
        machine += ",smm=on" if spec.firmware.secure else ""
    cores = spec.max_cpus // spec.sockets
    smp = f"cpus={spec.cpus},maxcpus={spec.max_cpus},sockets={spec.sockets},cores={cores},threads=1"
    memory = f"size={spec.memory}M"
    if spec.max_memory > spec.memory:
        memory += f",slots={MEMORY_SLOTS},maxmem={spec.max_memory}M"
    words = ["-machine", machine, *_accelerator(spec), "-smp", smp, "-m", memory]
    if spec.hugepages:
        words[1] += f",memory-backend={_MAIN_MEMORY}"
        backend = memory_backend(_MAIN_MEMORY, spec.memory << 20, hugepages=True)
        words += ["-object", _json(backend)]
    if spec.memory_lock:
        words += ["-overcommit", "mem-lock=on"]
    return words


def memory_backend(name: str, size: int, *, hugepages: bool) -> Object:
    """Return the object that memory of SIZE bytes comes from, for -object and object-add."""
    if not hugepages:
        return {"qom-type": "memory-backend-ram", "id": name, "size": size}
    # By memfd_create(2): no file system has to be mounted for it, and none has to be let in.
    kind = {"qom-type": "memory-backend-memfd", "id": name, "size": size}
    return kind | {"hugetlb": True, "hugetlbsize": HUGE_PAGE}


def _accelerator(spec: MachineSpec) -> list[str]:
    features = "".join(f",{name}={'on' if on else 'off'}" for name, on in spec.cpu_features)
    if spec.accelerator == "kvm":
        nested = "" if spec.nested else ",vmx=off,svm=off"
        if spec.nested and spec.cpu_model:  # no model has it by itself; what cannot be is left out
            nested = ",vmx=on,svm=on"
        model = spec.cpu_model or "host,migratable=on"
        return ["-accel", "kvm", "-cpu", f"{model}{nested}{features}"]
    model = spec.cpu_model or "max"
    return ["-accel", f"tcg,tb-size={TRANSLATION_CACHE}", "-cpu", f"{model}{features}"]


def _channel(name: str, descriptor: int) -> list[str]:
    return ["-chardev", f"socket,id={name},fd={descriptor},server=on,wait=off"]


def _port(id_: str, chardev: str, name: str) -> Object:
    """Return the device that the guest has as /dev/virtio-ports/NAME."""
    return _on("virtserialport", id_, "channels0.0", chardev=chardev) | {"name": name}


def _firmware(spec: MachineSpec) -> list[str]:
    if spec.firmware is None:
        return []
    words: list[str] = []
    if spec.firmware.secure:
        # Only the firmware in system management mode may write the variables; a guest that wakes up
        # would get past it.
        words += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        words += ["-global", "ICH9-LPC.disable_s3=1"]
    parts = (("code", spec.firmware.code, True), ("variables", spec.firmware.variables, False))
    for part, path, readonly in parts:
        file = {"driver": "file", "filename": path, "node-name": f"firmware-{part}-file"}
        raw = {"driver": "raw", "file": file["node-name"], "node-name": f"firmware-{part}"}
        for node in (file, raw):
            words += ["-blockdev", _json(node | {"read-only": readonly})]
    return words


def _tpm(spec: MachineSpec) -> list[str]:
    if spec.tpm < 0:
        return []
    words = ["-chardev", f"socket,id=tpm-way,fd={spec.tpm}"]
    words += ["-tpmdev", "emulator,id=tpm-host,chardev=tpm-way"]
    return [*words, "-device", _json({"driver": "tpm-crb", "id": "tpm0", "tpmdev": "tpm-host"})]


def _sound(spec: MachineSpec) -> list[str]:
    """Where the sound card's sound goes: to a viewer of the display that asks for it, else away."""
    return ["-audiodev", f"none,id={_SOUND}"] if spec.sound else []


def _devices(spec: MachineSpec) -> list[Object]:
    """What every machine has, at its fixed place."""
    root = "pcie.0" if spec.chipset == "q35" else "pci.0"
    found = [
        _on("VGA", "video0", root, addr="0x2", vgamem_mb=spec.video),
        _on("virtio-scsi-pci", "scsi0", root, addr="0x3"),
        _on("virtio-serial-pci", "channels0", root, addr="0x4"),
        _on("virtio-balloon-pci", "balloon0", root, addr="0x5") | {"free-page-reporting": True},
        _on("virtio-rng-pci", "rng0", root, addr="0x6"),
        {"driver": "pvpanic", "id": "panic0"},
    ]
    if spec.usb:
        found.append(_on("qemu-xhci", "usb0", root, addr="0x7"))
        found.append(_on("usb-tablet", "tablet0", "usb0.0"))
    found += [usb_device(device) for device in spec.usb_devices]
    if spec.sound:
        found.append(_on("intel-hda", "sound0", root, addr="0x8"))
        found.append(_on("hda-duplex", "codec0", "sound0.0", audiodev=_SOUND))
    if spec.chipset == "q35":
        found += [_root_port(number) for number in range(ROOT_PORTS)]
    return found


def usb_device(device: UsbSpec) -> Object:
    """Return the device that a USB device of the node is, for -device and device_add."""
    return _on("usb-host", device.name, "usb0.0", hostdevice=device.file)


def _root_port(number: int) -> Object:
    slot, function = divmod(number, 8)
    address = f"0x{0x10 + slot:x}.0x{function:x}"
    port = _on("pcie-root-port", f"port{number}", "pcie.0", addr=address)
    port |= {"chassis": number + 1, "port": number + 1}
    return port | ({"multifunction": True} if function == 0 else {})


def _pci_devices(spec: MachineSpec) -> list[Object]:
    """The node's, each behind a port of its own; no other machine has those ports."""
    found = []
    for number, device in enumerate(spec.pci_devices):
        place: Object = {"bus": "pci.0", "addr": f"0x{0x1C + number:x}"}
        if spec.chipset == "q35":
            found.append(_root_port(ROOT_PORTS + number))
            place = {"bus": f"port{ROOT_PORTS + number}"}
        found.append({"driver": "vfio-pci", "id": device.name, "host": device.address, **place})
    return found


def _slot(chipset: str, number: int) -> Object:
    """Where the card or virtio disk of that NUMBER is: behind its own port, or on the old bus."""
    if chipset == "q35":
        return {"bus": f"port{number}"}
    return {"bus": "pci.0", "addr": f"0x{0x0C + number:x}"}


def blockdevs(drive: DriveSpec) -> list[Object]:
    """Return the block nodes of a drive, the lowest first; the top one is called as the drive.

    An image never decides what else is opened: what is below it is always said, also "nothing".
    """
    if not drive.file:
        return []
    nodes: list[Object] = []
    if drive.base:
        nodes += _layer(drive, "base", drive.base, readonly=True)
        nodes[-1] |= {"backing": None} if drive.format == "qcow2" else {}
    top = _layer(drive, "", drive.file, readonly=drive.readonly)
    if drive.format == "qcow2":
        top[-1]["backing"] = f"{drive.name}-base" if drive.base else None
    return nodes + top


def _layer(drive: DriveSpec, layer: str, path: str, *, readonly: bool) -> list[Object]:
    name = f"{drive.name}-{layer}" if layer else drive.name
    cache = {"direct": drive.direct, "no-flush": False}
    common: Object = {"read-only": readonly, "cache": cache}
    freeing = drive.is_disk and drive.discard and not readonly
    if freeing:
        common |= {"discard": "unmap"}
    file = {"driver": drive.driver, "filename": path, "node-name": f"{name}-file"} | common
    if drive.driver == "file" and drive.direct:
        file["aio"] = "native"
    image: Object = {"driver": drive.format, "file": file["node-name"], "node-name": name} | common
    if freeing:
        image["detect-zeroes"] = "unmap"
    if drive.offset and not layer:
        image["offset"] = drive.offset
    if drive.secret and not layer:
        image["encrypt"] = {"format": "luks", "key-secret": drive.secret}
    return [file, image]


def drive_device(drive: DriveSpec, chipset: str) -> Object:
    """Return the device of a drive, for -device and device_add."""
    kind = "hd" if drive.is_disk else "cd"
    if drive.iface == "virtio":
        device: Object = {"driver": "virtio-blk-pci", **_slot(chipset, 8 + drive.position)}
    elif drive.iface in {"ide", "sata"}:
        bus, unit = (drive.position, 0) if chipset == "q35" else divmod(drive.position, 2)
        device = {"driver": f"ide-{kind}", "bus": f"ide.{bus}", "unit": unit}
    else:
        device = {"driver": f"scsi-{kind}", "bus": "scsi0.0", "scsi-id": drive.position}
    device["id"] = f"device-{drive.name}"
    if drive.file:
        device["drive"] = drive.name
    if drive.is_disk:
        device |= {"werror": "enospc", "rerror": "report"}
    if drive.serial:
        device["serial"] = drive.serial
    return device | ({"bootindex": drive.boot} if drive.boot else {})


def nic_device(nic: NicSpec, chipset: str) -> Object:
    """Return the device of a card, for -device and device_add."""
    number = int(nic.name.removeprefix("net"))
    device: Object = {"driver": _MODELS[nic.model], "id": f"device-{nic.name}"}
    device |= {"netdev": f"host-{nic.name}", "mac": nic.mac, **_slot(chipset, number)}
    return device | ({"bootindex": nic.boot} if nic.boot else {})


def _serials(spec: MachineSpec, sockets: Sockets) -> list[str]:
    """The first port without a place of its own is the console."""
    words = _channel("console", sockets.console)
    for index, port in enumerate(spec.serials):
        chardev = "console"
        if port.chardev:
            chardev = f"{port.name}-file"
            words += ["-chardev", f"{port.chardev},id={chardev}"]
        device = {"driver": "isa-serial", "id": port.name, "chardev": chardev, "index": index}
        words += ["-device", _json(device)]
    return words


def _display(spec: MachineSpec) -> list[str]:
    remote = spec.remote
    if remote is None:
        return ["-display", "none"]
    address = f"[{remote.address}]" if ":" in remote.address else remote.address
    display = max(0, remote.port - _VNC_BASE)
    words = f"{address}:{display}"
    words += "" if remote.port else f",to={_VNC_LAST}"
    words += ",password=on" if remote.password else ""
    return ["-vnc", words + (f",audiodev={_SOUND}" if spec.sound else "")]
