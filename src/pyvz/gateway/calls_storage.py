"""Storage pools and what lies in them: those of `prlsrvctl pool`, and directories of images.

A volume of ours is the home of a container: it is made and removed with its container.  Volumes of
the others are disk images, which virtual machines are defined with.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final
from uuid import uuid4
from xml.etree.ElementTree import Element, SubElement

from pyvz.gateway import domain, failure, imagepools, machinexml, poolview
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domaindefine import size_of
from pyvz.gateway.failure import Failure
from pyvz.gateway.imagepools import ImagePool
from pyvz.gateway.nodexml import text_of
from pyvz.gateway.notes import parsed
from pyvz.gateway.poolview import PoolView, VolumeView
from pyvz.model.environment import canonical_uuid
from pyvz.model.task import Progress
from pyvz.operations.node import Node
from pyvz.vm import image

Key = dict[str, Any]

INACTIVE, ACTIVE = 1, 2
RUNNING, BROKEN = 2, 4
KINDS: Final = {"file": 0, "dir": 2}  # of volumes


def connect_list_all_storage_pools(call: Call, *, need_results: int, flags: int) -> Values:
    """Every pool, or those that can be used (2), or cannot (1)."""
    found = [each.key for each in poolview.every(call.office.node) if _selected(each, flags)]
    return {"pools": found if need_results else [], "ret": len(found)}


def connect_num_of_storage_pools(call: Call) -> Values:
    """How many can be used."""
    return {"num": sum(not each.problem for each in poolview.every(call.office.node))}


def storage_pool_lookup_by_name(call: Call, *, name: str) -> Values:
    """A pool by its name."""
    return {"pool": poolview.named(call.office.node, name).key}


def storage_pool_lookup_by_uuid(call: Call, *, uuid: str) -> Values:
    """A pool by its UUID."""
    for each in poolview.every(call.office.node):
        if each.uuid == uuid:
            return {"pool": each.key}
    raise Failure(failure.NO_POOL, f"Storage pool not found: no pool has the UUID {uuid}")


def storage_pool_lookup_by_volume(call: Call, *, vol: Key) -> Values:
    """The pool of a volume."""
    return {"pool": poolview.named(call.office.node, vol["pool"]).key}


def storage_pool_lookup_by_target_path(call: Call, *, path: str) -> Values:
    """The pool at a directory."""
    wanted = os.path.normpath(path)
    for each in poolview.every(call.office.node):
        if os.path.normpath(each.path) == wanted:
            return {"pool": each.key}
    raise Failure(failure.NO_POOL, f"Storage pool not found: no pool is at {path}")


def storage_pool_get_xml_desc(call: Call, *, pool: Key, flags: int) -> Values:
    """Describe a pool."""
    _ = flags
    state = poolview.named(call.office.node, pool["name"])
    top = Element("pool", type="dir")
    SubElement(top, "name").text = state.name
    SubElement(top, "uuid").text = state.uuid
    for name, size in state.sizes.items():
        SubElement(top, name, unit="bytes").text = str(size)
    SubElement(top, "source")
    target = SubElement(top, "target")
    SubElement(target, "path").text = os.fspath(state.path)
    return {"xml": text_of(top)}


def storage_pool_get_info(call: Call, *, pool: Key) -> Values:
    """Its state and how much room it has."""
    state = poolview.named(call.office.node, pool["name"])
    return {"state": BROKEN if state.problem else RUNNING, **state.sizes}


def storage_pool_is_active(call: Call, *, pool: Key) -> Values:
    """Whether it can be used."""
    return {"active": int(not poolview.named(call.office.node, pool["name"]).problem)}


def storage_pool_is_persistent(call: Call, *, pool: Key) -> Values:
    """All of ours are written down."""
    poolview.named(call.office.node, pool["name"])
    return {"persistent": 1}


def storage_pool_get_autostart(call: Call, *, pool: Key) -> Values:
    """All of ours are there when the node is."""
    poolview.named(call.office.node, pool["name"])
    return {"autostart": 1}


def storage_pool_refresh(call: Call, _progress: Progress, *, pool: Key, flags: int) -> None:
    """Nothing is remembered that could be old."""
    _ = flags
    poolview.named(call.office.node, pool["name"])


def storage_pool_list_all_volumes(
    call: Call, *, pool: Key, need_results: int, flags: int
) -> Values:
    """The homes or images in a pool."""
    _ = flags
    state = poolview.named(call.office.node, pool["name"])
    found = [each.key for each in state.volumes()]
    return {"vols": found if need_results else [], "ret": len(found)}


def storage_pool_num_of_volumes(call: Call, *, pool: Key) -> Values:
    """How many there are."""
    return {"num": len(poolview.named(call.office.node, pool["name"]).volumes())}


def storage_pool_list_volumes(call: Call, *, pool: Key, maxnames: int) -> Values:
    """Their names."""
    found = [each.name for each in poolview.named(call.office.node, pool["name"]).volumes()]
    return {"names": found[: max(0, maxnames)]}


def storage_vol_lookup_by_name(call: Call, *, pool: Key, name: str) -> Values:
    """A volume by its name in a pool."""
    state = poolview.named(call.office.node, pool["name"])
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
        for each in state.volumes():
            place = os.fspath(each.path)
            if path == place or path.startswith(f"{place}/"):
                return {"vol": each.key}
    raise Failure(failure.NO_VOLUME, f"Storage volume not found: no volume is at {path}")


def storage_vol_get_xml_desc(call: Call, *, vol: Key, flags: int) -> Values:
    """Describe a volume."""
    _ = flags
    volume = _find(call.office.node, vol)
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
    volume = _find(call.office.node, vol)
    return {"type": KINDS[volume.kind], **volume.sizes()}


def storage_vol_get_path(call: Call, *, vol: Key) -> Values:
    """Where it is."""
    return {"name": os.fspath(_find(call.office.node, vol).path)}


def storage_pool_define_xml(call: Call, _progress: Progress, *, xml: str, flags: int) -> Values:
    """Call a directory of images a pool; other kinds are made with `prlsrvctl pool`."""
    _ = flags
    node = call.office.node
    top = parsed(xml, "description of the pool")
    name = (top.findtext("name") or "").strip()
    if top.tag != "pool" or top.get("type") != "dir":
        raise Failure(
            failure.UNSUPPORTED, f"A pool of type '{top.get('type')}' is not supported; dir is"
        )
    wanted = (top.findtext("uuid") or "").strip()
    uuid = canonical_uuid(wanted) if wanted else str(uuid4())
    if uuid is None:
        raise Failure(failure.XML, f"'{wanted}' is no UUID")
    for each in poolview.every(node):
        if each.name == name and not (each.images and each.uuid == uuid):
            raise Failure(failure.FAILED, f"pool '{name}' already exists with uuid {each.uuid}")
    path = Path(os.path.normpath((top.findtext("target/path") or "").strip()))
    imagepools.add(node, ImagePool(name, uuid, path))
    return {"pool": {"name": name, "uuid": uuid}}


def storage_pool_create_xml(call: Call, progress: Progress, *, xml: str, flags: int) -> Values:
    """The same: what is known can be used."""
    return storage_pool_define_xml(call, progress, xml=xml, flags=flags)


def storage_pool_create(call: Call, _progress: Progress, *, pool: Key, flags: int) -> None:
    """What is known can be used, or it has a problem, which is told."""
    _ = flags
    state = poolview.named(call.office.node, pool["name"])
    if state.problem:
        raise Failure(failure.FAILED, f"The pool {state.name} cannot be used: {state.problem}")


def storage_pool_set_autostart(
    call: Call, _progress: Progress, *, pool: Key, autostart: int
) -> None:
    """All are there when the node is."""
    poolview.named(call.office.node, pool["name"])
    if not autostart:
        raise Failure(failure.OPERATION_UNSUPPORTED, "Every pool is there when the node is")


def storage_pool_undefine(call: Call, _progress: Progress, *, pool: Key) -> None:
    """Forget a directory of images; its files stay."""
    imagepools.remove(call.office.node, _images(call.office.node, pool).name)


def storage_vol_create_xml(
    call: Call, _progress: Progress, *, pool: Key, xml: str, flags: int
) -> Values:
    """Make an empty image, qcow2 or raw."""
    _ = flags
    state = _images(call.office.node, pool)
    top = parsed(xml, "description of the volume")
    name = (top.findtext("name") or "").strip()
    form = top.find("target/format")
    kind = (form.get("type") if form is not None else None) or "raw"
    if not name or "/" in name or name.startswith(".") or not name.isprintable():
        raise Failure(failure.XML, f"'{name}' cannot be the name of a volume")
    if kind not in {"qcow2", "raw"} or top.find("backingStore") is not None:
        raise Failure(
            failure.UNSUPPORTED, f"A volume of the format '{kind}' or over another is not supported"
        )
    size = size_of(top.find("capacity"), default="bytes")
    if not 0 < size < 1 << 53:
        raise Failure(failure.XML, "The volume has no capacity that makes sense")
    path = state.path / name
    image.create(path, size, kind)
    return {"vol": {"pool": state.name, "name": name, "key": os.fspath(path)}}


def storage_vol_delete(call: Call, _progress: Progress, *, vol: Key, flags: int) -> None:
    """Remove an image that no machine has."""
    _ = flags
    node = call.office.node
    _images(node, {"name": vol["pool"]})
    volume = _find(node, vol)
    for each in domain.all_domains(node):
        if domain.is_machine(each) and volume.path in {
            machinexml.source(each, drive) for drive, _ in machinexml.drives(each)
        }:
            raise Failure(failure.OPERATION_INVALID, f"{volume.path} is a disk of {each.env.name}")
    volume.path.unlink(missing_ok=True)


def _find(node: Node, vol: Key) -> VolumeView:
    for each in poolview.named(node, vol["pool"]).volumes():
        if each.name == vol["name"]:
            return each
    raise Failure(failure.NO_VOLUME, f"Storage volume not found: '{vol['name']}'")


def _images(node: Node, pool: Key) -> PoolView:
    """Return a directory of images; raises Failure (84) for a pool of homes."""
    state = poolview.named(node, pool["name"])
    if not state.images:
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"The pool {state.name} is changed with prlsrvctl pool, and what is in it with prlctl",
        )
    return state


def _selected(state: PoolView, flags: int) -> bool:
    asked = flags & (INACTIVE | ACTIVE)
    return not asked or bool(flags & (INACTIVE if state.problem else ACTIVE))
