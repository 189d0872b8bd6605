"""PCI devices of the node in a virtual machine (VFIO).

    <run>/pci/ADDRESS.json    uuid, group, driver: which machine has it, and whose it was

The record of a device is written before the device is taken from its driver, and goes when it has
been given back: whoever dies in between leaves what the next one needs to do so.  All devices of an
IOMMU group are taken, as the kernel wants it; the machine gets those that it names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import Busy, NotFound, Unsupported, VZError
from pyvz.linux import deviceuse, vfio
from pyvz.linux.file import write_atomic
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import HostPci
from pyvz.operations.node import Node
from pyvz.vm.spec import PciSpec

log = logging.getLogger(__name__)


class _Taken(NamedTuple):
    """The record of a device.  driver: that it had; vfio-pci: it was free for such use already."""

    address: str
    uuid: str
    group: str
    driver: str


def check(old: Config, new: Config) -> None:
    """Refuse devices that are added and that cannot be given away."""
    for device in new.machine.pci_devices:
        if device not in old.machine.pci_devices:
            if vfio.is_bridge(device.device):
                raise Unsupported(f"{device.device} is a part of the node's board (a bridge)")
            vfio.group(device.device)


def refuse(node: Node, env: Environment, what: str) -> None:
    """Raise Unsupported for what cannot be done while it has devices: nobody knows their state."""
    if has(node, env.uuid):
        raise Unsupported(
            f"{env.name} drives a PCI device of this node: {what}",
            hint="What the device holds cannot be saved. Stop it first.",
        )


def open_all(node: Node, env: Environment, config: Config, uid: int) -> tuple[PciSpec, ...]:
    """Take the devices of a machine for the user UID; `give_back` undoes it, after a failure too.

    Raises NotFound, Busy, Unsupported, StartError.
    """
    if not config.machine.pci_devices:
        return ()
    vfio.load()
    return tuple(_open(node, env, device, uid) for device in config.machine.pci_devices)


def _open(node: Node, env: Environment, device: HostPci, uid: int) -> PciSpec:
    try:
        number, members = vfio.group(device.device), vfio.members(device.device)
    except NotFound as error:
        without = f"Without it: prlctl set {env.name} --device-del {device.name}"
        raise NotFound(f"{device.name}: {error.message}", hint=without) from error
    for address in members:
        _check_free(node, env, device, address)
    for address in members:
        if not _path(node, address).exists():
            _note(node, _Taken(address, env.uuid, number, vfio.driver(address)))
            vfio.take(address)
    return PciSpec(device.name, device.device, vfio.admit(number, uid))


def _check_free(node: Node, env: Environment, device: HostPci, address: str) -> None:
    """Raise Busy when another machine has it, or the node uses it."""
    record = _record(_path(node, address))
    if record is not None and record.uuid == env.uuid:
        return
    what = f"{device.name}: the PCI device {address}"
    if address != device.device:
        what += f", which shares its IOMMU group with {device.device},"
    if record is not None:
        if record.uuid in node.machines.running():
            with suppress(VZError):
                raise Busy(f"{what} is in use by {node.registry.resolve(record.uuid).name}")
        give_back(node, record.uuid)
    uses = deviceuse.uses(vfio.device(address))
    if uses:
        raise Busy(f"{what} is in use by this node", details="; ".join(uses))


def has(node: Node, uuid: str) -> bool:
    """Return whether a machine has any: then all of its memory stays where it is."""
    return any(record.uuid == uuid for record in _records(node))


def give_back(node: Node, uuid: str) -> None:
    """Give all devices that a machine had back to their drivers; it does not run; idempotent."""
    for record in list(_records(node)):
        if record.uuid == uuid:
            vfio.shut(record.group)
            if record.driver != vfio.DRIVER:
                vfio.give_back(record.address, record.driver)
            _path(node, record.address).unlink(missing_ok=True)


def _path(node: Node, address: str) -> Path:
    return node.paths.run / "pci" / f"{address}.json"


def _note(node: Node, record: _Taken) -> None:
    path = _path(node, record.address)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomic(path, json.dumps(record._asdict()), 0o600, durable=False)


def _records(node: Node) -> Iterator[_Taken]:
    for path in sorted((node.paths.run / "pci").glob("*.json")):
        record = _record(path)
        if record is not None:
            yield record


def _record(path: Path) -> _Taken | None:
    try:
        return _Taken(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        log.warning("%s cannot be understood", path)
        return None
