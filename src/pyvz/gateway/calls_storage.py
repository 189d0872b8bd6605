"""Storage pools and what lies in them: those of `prlsrvctl pool`, and directories of images.

A volume of ours is the home of a container: it is made and removed with its container.  Volumes of
the others are disk images (calls_volume), which virtual machines are defined with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import uuid4
from xml.etree.ElementTree import Element, SubElement

from pyvz.gateway import failure, imagepools, poolview
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.gateway.imagepools import ImagePool
from pyvz.gateway.nodexml import text_of
from pyvz.gateway.notes import parsed
from pyvz.gateway.poolview import PoolView
from pyvz.model import event
from pyvz.model.environment import canonical_uuid
from pyvz.model.task import Progress
from pyvz.operations import storagepool
from pyvz.operations.node import Node

Key = dict[str, Any]

_FORMATS: Final = ("raw", "qcow2")  # of volumes
INACTIVE, RUNNING, BROKEN = 0, 2, 4  # states

# A filter of a list lets through what one of its two flags fits, or all where neither is set.
_FILTERS: Final[Mapping[tuple[int, int], Callable[[PoolView], bool]]] = {
    (1 << 1, 1 << 0): lambda pool: pool.active,
    (1 << 2, 1 << 3): lambda _: True,  # persistent, transient
    (1 << 4, 1 << 5): lambda pool: pool.autostart,
}
_KINDS: Final = sum(1 << bit for bit in range(6, 19))  # kinds of pools; ours are directories
_DIRECTORIES: Final = 1 << 6
_PARTS: Final = frozenset({
    "name", "uuid", "capacity", "allocation", "available", "source", "target",
})  # fmt: skip


def connect_get_storage_pool_capabilities(_call: Call, *, flags: int) -> Values:
    """The one type of pools that can be defined, and the formats of its volumes."""
    _ = flags
    top = Element("storagepoolCapabilities")
    pool = SubElement(top, "pool", type="dir", supported="yes")
    options = SubElement(pool, "volOptions")
    SubElement(options, "defaultFormat", type=_FORMATS[0])
    formats = SubElement(options, "enum", name="targetFormatType")
    for name in _FORMATS:
        SubElement(formats, "value").text = name
    return {"capabilities": text_of(top)}


def connect_list_all_storage_pools(call: Call, *, need_results: int, flags: int) -> Values:
    """Every pool that the filters let through."""
    found = [each.key for each in poolview.every(call.office.node) if _selected(each, flags)]
    return {"pools": found if need_results else [], "ret": len(found)}


def connect_num_of_storage_pools(call: Call) -> Values:
    """How many can be used."""
    return {"num": sum(each.active for each in poolview.every(call.office.node))}


def connect_list_storage_pools(call: Call, *, maxnames: int) -> Values:
    """Their names."""
    return _names(call, maxnames, active=True)


def connect_num_of_defined_storage_pools(call: Call) -> Values:
    """How many are stopped."""
    return {"num": sum(not each.active for each in poolview.every(call.office.node))}


def connect_list_defined_storage_pools(call: Call, *, maxnames: int) -> Values:
    """Their names."""
    return _names(call, maxnames, active=False)


def _names(call: Call, room: int, *, active: bool) -> Values:
    pools = poolview.every(call.office.node)
    found = [each.key["name"] for each in pools if each.active == active]
    return {"names": found[: max(0, room)]}


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
    working = BROKEN if state.problem else RUNNING
    return {"state": working if state.active or state.problem else INACTIVE, **state.sizes}


def storage_pool_is_active(call: Call, *, pool: Key) -> Values:
    """Whether it can be used."""
    return {"active": int(poolview.named(call.office.node, pool["name"]).active)}


def storage_pool_is_persistent(call: Call, *, pool: Key) -> Values:
    """All of ours are written down."""
    poolview.named(call.office.node, pool["name"])
    return {"persistent": 1}


def storage_pool_get_autostart(call: Call, *, pool: Key) -> Values:
    """Whether it is there when the node is."""
    return {"autostart": int(poolview.named(call.office.node, pool["name"]).autostart)}


def storage_pool_refresh(call: Call, _progress: Progress, *, pool: Key, flags: int) -> None:
    """Nothing is remembered that could be old; who waits for it is told."""
    _ = flags
    refreshed(call.office.node, poolview.active(call.office.node, pool["name"]))


def refreshed(node: Node, state: PoolView) -> None:
    """Tell that what is in a pool has changed."""
    node.tell(event.POOL_REFRESH, name=state.name, uuid=state.uuid)


def storage_pool_list_all_volumes(
    call: Call, *, pool: Key, need_results: int, flags: int
) -> Values:
    """The homes or images in a pool."""
    _ = flags
    state = poolview.active(call.office.node, pool["name"])
    found = [each.key for each in state.volumes()]
    return {"vols": found if need_results else [], "ret": len(found)}


def storage_pool_num_of_volumes(call: Call, *, pool: Key) -> Values:
    """How many there are."""
    return {"num": len(poolview.active(call.office.node, pool["name"]).volumes())}


def storage_pool_list_volumes(call: Call, *, pool: Key, maxnames: int) -> Values:
    """Their names."""
    found = [each.name for each in poolview.active(call.office.node, pool["name"]).volumes()]
    return {"names": found[: max(0, maxnames)]}


def storage_pool_define_xml(call: Call, _progress: Progress, *, xml: str, flags: int) -> Values:
    """Call a directory of images a pool; it is inactive, and need not be there yet.

    Other kinds are made with `prlsrvctl pool`.
    """
    _ = flags
    made = _wanted(call.office.node, xml)
    _note(call.office.node, made, event.POOL_ADD)
    return {"pool": {"name": made.name, "uuid": made.uuid}}


def storage_pool_create_xml(call: Call, _progress: Progress, *, xml: str, flags: int) -> Values:
    """Make a pool of a directory that is there (1, 2, 4: or is made now), and start it."""
    made = _wanted(call.office.node, xml)
    if flags:
        _make_directory(made.path)
    _check_directory(made)
    _note(call.office.node, made._replace(active=True), event.POOL_ADD, event.POOL_START)
    return {"pool": {"name": made.name, "uuid": made.uuid}}


def storage_pool_create(call: Call, _progress: Progress, *, pool: Key, flags: int) -> None:
    """Start a pool, as above."""
    state, images = _own(call.office.node, pool)
    if state.active:
        raise Failure(failure.OPERATION_INVALID, f"storage pool '{state.name}' is already active")
    if flags:
        _make_directory(images.path)
    _check_directory(images)
    _note(call.office.node, images._replace(active=True), event.POOL_START)


def storage_pool_build(call: Call, _progress: Progress, *, pool: Key, flags: int) -> None:
    """Make the directory of a pool; what is in one that is there stays."""
    _ = flags
    _make_directory(_stopped(call.office.node, pool).path)


def storage_pool_destroy(call: Call, _progress: Progress, *, pool: Key) -> None:
    """Stop a pool: its volumes are not shown until it is started, their users go on."""
    state, images = _own(call.office.node, pool)
    if not images.active:
        raise Failure(failure.OPERATION_INVALID, f"storage pool '{state.name}' is not active")
    _note(call.office.node, images._replace(active=False), event.POOL_STOP)


def storage_pool_delete(call: Call, _progress: Progress, *, pool: Key, flags: int) -> None:
    """Remove the directory of a stopped pool, which has to be empty."""
    _ = flags
    images = _stopped(call.office.node, pool)
    try:
        images.path.rmdir()
    except OSError as error:
        raise Failure(failure.SYSTEM, f"{images.path} stays: {error.strerror}") from error


def storage_pool_set_autostart(
    call: Call, _progress: Progress, *, pool: Key, autostart: int
) -> None:
    """Have a pool started with the node, or not; those of homes always are."""
    state = poolview.named(call.office.node, pool["name"])
    if state.images is not None:
        _note(call.office.node, state.images._replace(autostart=bool(autostart)))
    elif not autostart:
        raise Failure(failure.OPERATION_UNSUPPORTED, "A pool of homes is there when the node is")


def storage_pool_undefine(call: Call, _progress: Progress, *, pool: Key) -> None:
    """Forget a directory of images, or give up a pool of homes without any; the files stay."""
    node = call.office.node
    if poolview.named(node, pool["name"]).images is None:
        storagepool.delete(node, pool["name"])
        return
    images = _stopped(node, pool)
    imagepools.remove(node, images.name)
    node.tell(event.POOL_DELETE, name=images.name, uuid=images.uuid)


def _wanted(node: Node, xml: str) -> ImagePool:
    """Return the pool that is described; raises Failure for what cannot be one."""
    top = parsed(xml, "description of the pool")
    name = (top.findtext("name") or "").strip()
    if top.tag != "pool" or top.get("type") != "dir":
        raise Failure(
            failure.UNSUPPORTED, f"A pool of type '{top.get('type')}' is not supported; dir is"
        )
    for part in top:
        if part.tag not in _PARTS:
            raise Failure(failure.UNSUPPORTED, f"The element <{part.tag}> of a pool")
    wanted = (top.findtext("uuid") or "").strip()
    path = Path(os.path.normpath((top.findtext("target/path") or "").strip()))
    for each in poolview.every(node):
        if each.name == name:
            if each.images is None or wanted not in ("", each.uuid):
                raise Failure(failure.FAILED, f"pool '{name}' already exists with uuid {each.uuid}")
            return each.images._replace(path=path)
    uuid = canonical_uuid(wanted) if wanted else str(uuid4())
    if uuid is None:
        raise Failure(failure.XML, f"'{wanted}' is no UUID")
    return ImagePool(name, uuid, path, autostart=False, active=False)


def _note(node: Node, pool: ImagePool, *happened: str) -> None:
    imagepools.add(node, pool)
    for name in happened:
        node.tell(name, name=pool.name, uuid=pool.uuid)


def _own(node: Node, pool: Key) -> tuple[PoolView, ImagePool]:
    return poolview.of_images(node, pool["name"])


def _stopped(node: Node, pool: Key) -> ImagePool:
    """Return a pool that is stopped; raises Failure (55) for another one."""
    state, images = _own(node, pool)
    if state.active:
        raise Failure(failure.OPERATION_INVALID, f"storage pool '{state.name}' is still active")
    return images


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(failure.SYSTEM, f"{path} cannot be made: {error.strerror}") from error


def _check_directory(pool: ImagePool) -> None:
    if not pool.path.is_dir():
        raise Failure(failure.INVALID_ARGUMENT, f"There is no directory {pool.path}")


def _selected(pool: PoolView, flags: int) -> bool:
    if flags & _KINDS and not flags & _DIRECTORIES:
        return False
    return all(
        not flags & (yes | no) or flags & (yes if fits(pool) else no)
        for (yes, no), fits in _FILTERS.items()
    )
