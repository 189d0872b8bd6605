"""Volumes: the homes of containers, to look at, and disk images, which are made and filled here.

An image that a machine has that runs is left alone, and one that any machine has is not deleted.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.etree.ElementTree import Element, SubElement

from pyvz.gateway import domain, failure, machinedisks, machinexml, poolview, volumeflow
from pyvz.gateway.calls_storage import refreshed
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domain import Domain
from pyvz.gateway.domaindefine import size_of
from pyvz.gateway.failure import Failure
from pyvz.gateway.nodexml import text_of
from pyvz.gateway.notes import parsed
from pyvz.gateway.poolview import PoolView, VolumeView
from pyvz.gateway.volumeflow import Download, Upload
from pyvz.model.status import Status
from pyvz.model.task import Progress
from pyvz.operations.node import Node
from pyvz.vm import image

Key = dict[str, Any]

KINDS: Final = {"file": 0, "dir": 2}  # of volumes
FORMATS: Final = ("qcow2", "raw")
PHYSICAL: Final = 1  # flags of the calls
ZEROED: Final = 1
ALLOCATE, DELTA, SHRINK = 1, 2, 4
ZERO: Final = 0  # the pattern of wiping that can be had
_MOST: Final = 1 << 53  # bytes
_PARTS: Final = frozenset({
    "name", "key", "capacity", "allocation", "physical", "source", "target", "backingStore",
})  # fmt: skip
_OF_TARGET: Final = frozenset({
    "path", "format", "permissions", "timestamps", "compat", "features", "nocow",
})  # fmt: skip


class Wanted(NamedTuple):
    """The image that a description asks for; sizes in bytes."""

    name: str
    format: str
    capacity: int
    allocation: int


def storage_vol_lookup_by_name(call: Call, *, pool: Key, name: str) -> Values:
    """A volume by its name in a pool."""
    state = poolview.active(call.office.node, pool["name"])
    for each in state.volumes():
        if name in (each.name, each.alias):
            return {"vol": each.key}
    raise Failure(failure.NO_VOLUME, f"Storage volume not found: '{name}' in {state.name}")


def storage_vol_lookup_by_key(call: Call, *, key: str) -> Values:
    """A volume by its key, which is its path."""
    return storage_vol_lookup_by_path(call, path=key)


def storage_vol_lookup_by_path(call: Call, *, path: str) -> Values:
    """A volume by its path, or by that of something in it."""
    for state in poolview.every(call.office.node):
        for each in state.volumes() if state.active else ():
            place = os.fspath(each.path)
            if path == place or path.startswith(f"{place}/"):
                return {"vol": each.key}
    raise Failure(failure.NO_VOLUME, f"Storage volume not found: no volume is at {path}")


def storage_vol_get_xml_desc(call: Call, *, vol: Key, flags: int) -> Values:
    """Describe a volume."""
    _ = flags
    volume = poolview.volume(call.office.node, vol)
    top = Element("volume", type=volume.kind)
    SubElement(top, "name").text = volume.name
    SubElement(top, "key").text = os.fspath(volume.path)
    for name, size in volume.sizes().items():
        SubElement(top, name, unit="bytes").text = str(size)
    target = SubElement(top, "target")
    SubElement(target, "path").text = os.fspath(volume.path)
    SubElement(target, "format", type=volume.format)
    return {"xml": text_of(top)}


def storage_vol_get_info(call: Call, *, vol: Key) -> Values:
    """The size of a volume, and how much of it is in use."""
    volume = poolview.volume(call.office.node, vol)
    return {"type": KINDS[volume.kind], **volume.sizes()}


def storage_vol_get_info_flags(call: Call, *, vol: Key, flags: int) -> Values:
    """The same; 1: the bytes of the file, in place of those that are in use."""
    volume = poolview.volume(call.office.node, vol)
    found = dict(storage_vol_get_info(call, vol=vol))
    if flags & PHYSICAL and volume.kind == "file":
        found["allocation"] = volume.path.stat().st_size
    return found


def storage_vol_get_path(call: Call, *, vol: Key) -> Values:
    """Where it is."""
    return {"name": os.fspath(poolview.volume(call.office.node, vol).path)}


def storage_vol_create_xml(
    call: Call, _progress: Progress, *, pool: Key, xml: str, flags: int
) -> Values:
    """Make an empty image, qcow2 or raw."""
    _ = flags  # 1 asks for metadata of a qcow2 image ahead of their use
    state = _place(call.office.node, pool)
    wanted = wanted_of(xml)
    if not wanted.capacity:
        raise Failure(failure.XML, "The volume has no capacity")
    machinedisks.check_place(state.path)
    path = state.path / wanted.name
    with ExitStack() as undo:
        image.create(path, wanted.capacity, wanted.format)
        undo.callback(path.unlink, missing_ok=True)
        if wanted.format == "raw" and wanted.allocation:
            volumeflow.allocate(path, min(wanted.allocation, wanted.capacity))
        undo.pop_all()
    refreshed(call.office.node, state)
    return {"vol": {"pool": state.name, "name": wanted.name, "key": os.fspath(path)}}


def storage_vol_create_xml_from(
    call: Call, progress: Progress, *, pool: Key, xml: str, clonevol: Key, flags: int
) -> Values:
    """Make an image with what is in another one, in the format and at least of the size asked."""
    _ = flags
    node = call.office.node
    state, source, wanted = _place(node, pool), _idle(node, clonevol), wanted_of(xml)
    machinedisks.check_place(state.path)
    path = state.path / wanted.name
    if path.exists():
        raise Failure(failure.FAILED, f"storage volume '{wanted.name}' exists already")
    header = image.look(source.path)
    image.check(header, source.path, source.format)
    with ExitStack() as undo:
        undo.callback(path.unlink, missing_ok=True)
        if wanted.format == source.format:
            image.copy(source.path, path, progress)
        else:
            image.convert(source.path, path, source.format, progress, wanted=wanted.format)
        if wanted.capacity > header.size:
            image.resize(path, wanted.capacity, wanted.format)
        undo.pop_all()
    refreshed(node, state)
    return {"vol": {"pool": state.name, "name": wanted.name, "key": os.fspath(path)}}


def storage_vol_delete(call: Call, progress: Progress, *, vol: Key, flags: int) -> None:
    """Remove an image that no machine has; flag 1: write zeros over it before."""
    node = call.office.node
    volume = _image(node, vol)
    owner = _owner(node, volume)
    if owner is not None:
        raise Failure(failure.OPERATION_INVALID, f"{volume.path} is a disk of {owner.env.name}")
    if flags & ZEROED:
        volumeflow.wipe(volume.path, progress)
    volume.path.unlink(missing_ok=True)
    refreshed(node, poolview.named(node, vol["pool"]))


def storage_vol_resize(
    call: Call, _progress: Progress, *, vol: Key, capacity: int, flags: int
) -> None:
    """Give an image another size (2: by so much more or, with 4, less); 1: with room for it."""
    volume = _idle(call.office.node, vol)
    present = volume.sizes()["capacity"]
    size = capacity
    if flags & DELTA:
        size = present - capacity if flags & SHRINK else present + capacity
    if size < present and not flags & SHRINK:
        raise Failure(
            failure.INVALID_ARGUMENT,
            f"{size} bytes are less than the {present} that {volume.name} has: say shrink",
        )
    if not 0 < size < _MOST:
        raise Failure(failure.INVALID_ARGUMENT, f"A volume cannot have {size} bytes")
    image.resize(volume.path, size, volume.format, shrink=bool(flags & SHRINK))
    if flags & ALLOCATE and volume.format == "raw":
        volumeflow.allocate(volume.path, size)


def storage_vol_wipe(call: Call, progress: Progress, *, vol: Key, flags: int) -> None:
    """Write zeros over everything in an image; of qcow2 nothing is left but the file."""
    storage_vol_wipe_pattern(call, progress, vol=vol, algorithm=ZERO, flags=flags)


def storage_vol_wipe_pattern(
    call: Call, progress: Progress, *, vol: Key, algorithm: int, flags: int
) -> None:
    """The same with a pattern, of which zeros can be had."""
    _ = flags
    if algorithm != ZERO:
        raise Failure(
            failure.OPERATION_UNSUPPORTED, "A volume is wiped with zeros (algorithm zero) only"
        )
    volumeflow.wipe(_idle(call.office.node, vol).path, progress)


async def storage_vol_upload(call: Call, arguments: dict[str, Any]) -> None:
    """Take what the client sends into an image, from an offset on; flag 1: with holes."""
    node = call.office.node
    volume = await call.office.query(lambda: _idle(node, arguments["vol"]))
    flow = Upload(call.office, volume.path, arguments["offset"], arguments["length"])
    call.client.streams.open(call.request, flow)


async def storage_vol_download(call: Call, arguments: dict[str, Any]) -> None:
    """Send the bytes of an image, from an offset on; flag 1: with holes."""
    node = call.office.node
    volume = await call.office.query(lambda: _image(node, arguments["vol"]))
    flow = Download(
        call.office, volume.path, arguments["offset"], arguments["length"],
        sparse=bool(arguments["flags"] & volumeflow.SPARSE),
    )  # fmt: skip
    call.client.streams.open(call.request, flow)


def wanted_of(xml: str) -> Wanted:
    """Return what a description asks for; raises Failure for what cannot be made."""
    top = parsed(xml, "description of the volume")
    _check(top)
    name = (top.findtext("name") or "").strip()
    form = top.find("target/format")
    kind = (form.get("type") if form is not None else None) or "raw"
    if not name or "/" in name or name.startswith(".") or not name.isprintable():
        raise Failure(failure.XML, f"'{name}' cannot be the name of a volume")
    if kind not in FORMATS or top.find("backingStore/path") is not None:
        raise Failure(
            failure.UNSUPPORTED, f"A volume of the format '{kind}' or over another is not supported"
        )
    sizes = [size_of(top.find(tag), default="bytes") for tag in ("capacity", "allocation")]
    if not all(0 <= size < _MOST for size in sizes):
        raise Failure(failure.XML, "The volume has no capacity that makes sense")
    return Wanted(name, kind, *sizes)


def _check(top: Element) -> None:
    """Raise Failure for what would be dropped in silence; who owns an image is ours to say."""
    for element, known in ((top, _PARTS), (top.find("target"), _OF_TARGET)):
        for each in element if element is not None else ():
            if each.tag not in known:
                raise Failure(failure.UNSUPPORTED, f"The element <{each.tag}> of a volume")


def _place(node: Node, pool: Key) -> PoolView:
    """Return the directory in which an image is to be made."""
    poolview.of_images(node, pool["name"])
    return poolview.active(node, pool["name"])


def _image(node: Node, vol: Key) -> VolumeView:
    """Return an image; raises Failure (84) for a home."""
    poolview.of_images(node, vol["pool"])
    return poolview.volume(node, vol)


def _idle(node: Node, vol: Key) -> VolumeView:
    """Return an image that no running machine has; raises Failure (55)."""
    volume = _image(node, vol)
    owner = _owner(node, volume)
    if owner is not None and owner.status != Status.STOPPED:
        raise Failure(
            failure.OPERATION_INVALID,
            f"{volume.path} is a disk of {owner.env.name}, which is {owner.status.value}",
        )
    return volume


def _owner(node: Node, volume: VolumeView) -> Domain | None:
    """Return the machine that has an image as a disk."""
    for each in domain.all_domains(node):
        if domain.is_machine(each) and volume.path in _sources(each):
            return each
    return None


def _sources(machine: Domain) -> set[Path | None]:
    return {machinexml.source(machine, drive) for drive, _ in machinexml.drives(machine)}
