"""The node's devices: listed and described, and left alone.

What is done with them is for the operating system, and `prlctl set --device-add usb` or `pci`.
"""

from __future__ import annotations

from typing import Any, Final

from pyvz.gateway import failure, hostdevicexml
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.gateway.hostdevicexml import COMPUTER, SYSTEM
from pyvz.linux import hostdevices
from pyvz.linux.hostdevices import NET, PCI, STORAGE, USB, HostDevice
from pyvz.model.task import Progress
from pyvz.operations import query

Key = dict[str, Any]

_KINDS: Final = {SYSTEM: 1, PCI: 2, USB: 4, NET: 16, STORAGE: 256}  # flags of the list
_EVERY_KIND: Final = (1 << 28) - 1
_TRANSIENT, _INACTIVE, _ACTIVE = 1 << 29, 1 << 30, 1 << 31


def connect_list_all_node_devices(_call: Call, *, need_results: int, flags: int) -> Values:
    """Every device of the kinds that are wanted; all of them are there, and stay."""
    wanted = flags & _EVERY_KIND
    known = [(COMPUTER, SYSTEM)] + [
        (hostdevicexml.name_of(each), each.kind) for each in hostdevices.every()
    ]
    found = [{"name": name} for name, kind in known if not wanted or _KINDS[kind] & wanted]
    if flags & (_INACTIVE | _ACTIVE) == _INACTIVE:
        found = []
    return {"devices": found if need_results else [], "ret": len(found)}


def node_num_of_devices(call: Call, *, cap: str | None, flags: int) -> Values:
    """How many there are of a kind."""
    names = node_list_devices(call, cap=cap, maxnames=_EVERY_KIND, flags=flags)["names"]
    return {"num": len(names)}


def node_list_devices(_call: Call, *, cap: str | None, maxnames: int, flags: int) -> Values:
    """Their names."""
    _ = flags
    names = [COMPUTER] if cap in (None, SYSTEM) else []
    names += [hostdevicexml.name_of(each) for each in hostdevices.every()
              if cap in (None, each.kind)]  # fmt: skip
    return {"names": names[: max(0, maxnames)]}


def node_device_lookup_by_name(_call: Call, *, name: str) -> Values:
    """A device by its name."""
    _find(name)
    return {"dev": {"name": name}}


def node_device_get_xml_desc(call: Call, *, name: str, flags: int) -> Values:
    """What it is, and what it is in."""
    _ = flags
    device, devices = _find(name)
    if device is None:
        return {"xml": hostdevicexml.computer(str(query.node_info(call.office.node)["ID"]))}
    return {"xml": hostdevicexml.described(device, devices)}


def node_device_get_parent(_call: Call, *, name: str) -> Values:
    """What it is in; the node itself is in nothing."""
    device, devices = _find(name)
    return {"parent": None if device is None else hostdevicexml.parent_of(device, devices)}


def node_device_num_of_caps(_call: Call, *, name: str) -> Values:
    """It is of one kind."""
    _find(name)
    return {"num": 1}


def node_device_list_caps(_call: Call, *, name: str, maxnames: int) -> Values:
    """That kind."""
    device, _ = _find(name)
    kind = SYSTEM if device is None else device.kind
    return {"names": [kind][: max(0, maxnames)]}


def node_device_is_active(_call: Call, *, name: str) -> Values:
    """It is there."""
    _find(name)
    return {"active": 1}


def node_device_is_persistent(_call: Call, *, name: str) -> Values:
    """It is nothing that was defined by a client."""
    _find(name)
    return {"persistent": 0}


def node_device_get_autostart(_call: Call, *, name: str) -> Values:
    """So nobody starts it either."""
    _find(name)
    return {"autostart": 0}


def node_device_dettach(_call: Call, _progress: Progress, **_: object) -> None:
    """Nothing: see above."""
    raise Failure(
        failure.OPERATION_UNSUPPORTED,
        "The node's devices are left to its operating system; one on USB or PCI is given to a"
        " virtual machine with prlctl set ID --device-add usb|pci --device NAME",
    )


node_device_detach_flags = node_device_dettach
node_device_re_attach = node_device_dettach
node_device_reset = node_device_dettach
node_device_create_xml = node_device_dettach
node_device_define_xml = node_device_dettach
node_device_undefine = node_device_dettach
node_device_create = node_device_dettach
node_device_destroy = node_device_dettach
node_device_set_autostart = node_device_dettach


def _find(name: str) -> tuple[HostDevice | None, list[HostDevice]]:
    """Return a device, None for the node itself, and all devices; raises Failure (53)."""
    devices = hostdevices.every()
    device = hostdevicexml.find(devices, name)
    if device is None and name != COMPUTER:
        raise Failure(failure.NO_NODE_DEVICE, f"There is no node device '{name}'")
    return device, devices
