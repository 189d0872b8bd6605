"""Storage pools and what lies in them, as `prlsrvctl pool` has them; pools of type `dir`.

A volume is the home of a container.  It is made and removed with its container, so the calls that
make, resize or delete one are answered "not supported".
"""

from __future__ import annotations

import os
from typing import Any
from uuid import NAMESPACE_URL, uuid5
from xml.etree.ElementTree import Element, SubElement

from pyvz.errors import NotFound, VZError
from pyvz.gateway import failure
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.gateway.nodexml import text_of
from pyvz.model.task import Progress
from pyvz.operations import storagepool
from pyvz.operations.node import Node
from pyvz.operations.storagepool import PoolState, Volume
from pyvz.storage import base as storage

Key = dict[str, Any]

INACTIVE, ACTIVE = 1, 2
RUNNING, BROKEN = 2, 4
DIRECTORY = 2  # the kind of a volume


def connect_list_all_storage_pools(call: Call, *, need_results: int, flags: int) -> Values:
    """Every pool, or those that can be used (2), or cannot (1)."""
    found = [_key(each) for each in storagepool.states(call.office.node) if _selected(each, flags)]
    return {"pools": found if need_results else [], "ret": len(found)}


def connect_num_of_storage_pools(call: Call) -> Values:
    """How many can be used."""
    return {"num": sum(not each.problem for each in storagepool.states(call.office.node))}


def storage_pool_lookup_by_name(call: Call, *, name: str) -> Values:
    """A pool by its name."""
    return {"pool": _key(_named(call.office.node, name))}


def storage_pool_lookup_by_uuid(call: Call, *, uuid: str) -> Values:
    """A pool by its UUID."""
    for each in storagepool.states(call.office.node):
        if _uuid(each) == uuid:
            return {"pool": _key(each)}
    raise Failure(failure.NO_POOL, f"Storage pool not found: no pool has the UUID {uuid}")


def storage_pool_lookup_by_volume(call: Call, *, vol: Key) -> Values:
    """The pool of a volume."""
    return {"pool": _key(_named(call.office.node, vol["pool"]))}


def storage_pool_lookup_by_target_path(call: Call, *, path: str) -> Values:
    """The pool at a directory."""
    wanted = os.path.normpath(path)
    for each in storagepool.states(call.office.node):
        if os.path.normpath(each.pool.path) == wanted:
            return {"pool": _key(each)}
    raise Failure(failure.NO_POOL, f"Storage pool not found: no pool is at {path}")


def storage_pool_get_xml_desc(call: Call, *, pool: Key, flags: int) -> Values:
    """Describe a pool."""
    _ = flags
    state = _named(call.office.node, pool["name"])
    top = Element("pool", type="dir")
    SubElement(top, "name").text = state.pool.name
    SubElement(top, "uuid").text = _uuid(state)
    for name, size in _sizes(state).items():
        SubElement(top, name, unit="bytes").text = str(size)
    SubElement(top, "source")
    target = SubElement(top, "target")
    SubElement(target, "path").text = os.fspath(state.pool.path)
    return {"xml": text_of(top)}


def storage_pool_get_info(call: Call, *, pool: Key) -> Values:
    """Its state and how much room it has."""
    state = _named(call.office.node, pool["name"])
    return {"state": BROKEN if state.problem else RUNNING, **_sizes(state)}


def storage_pool_is_active(call: Call, *, pool: Key) -> Values:
    """Whether it can be used."""
    return {"active": int(not _named(call.office.node, pool["name"]).problem)}


def storage_pool_is_persistent(call: Call, *, pool: Key) -> Values:
    """All of ours are written down."""
    _named(call.office.node, pool["name"])
    return {"persistent": 1}


def storage_pool_get_autostart(call: Call, *, pool: Key) -> Values:
    """All of ours are there when the node is."""
    _named(call.office.node, pool["name"])
    return {"autostart": 1}


def storage_pool_refresh(call: Call, _progress: Progress, *, pool: Key, flags: int) -> None:
    """Nothing is remembered that could be old."""
    _ = flags
    _named(call.office.node, pool["name"])


def storage_pool_list_all_volumes(
    call: Call, *, pool: Key, need_results: int, flags: int
) -> Values:
    """The homes in a pool."""
    _ = flags
    state = _named(call.office.node, pool["name"])
    found = [_volume(state, each) for each in state.volumes]
    return {"vols": found if need_results else [], "ret": len(found)}


def storage_pool_num_of_volumes(call: Call, *, pool: Key) -> Values:
    """How many there are."""
    return {"num": len(_named(call.office.node, pool["name"]).volumes)}


def storage_pool_list_volumes(call: Call, *, pool: Key, maxnames: int) -> Values:
    """Their names."""
    found = [each.uuid for each in _named(call.office.node, pool["name"]).volumes]
    return {"names": found[: max(0, maxnames)]}


def storage_vol_lookup_by_name(call: Call, *, pool: Key, name: str) -> Values:
    """A volume by its name in a pool."""
    state = _named(call.office.node, pool["name"])
    for each in state.volumes:
        if name in (each.uuid, each.name):
            return {"vol": _volume(state, each)}
    raise Failure(failure.NO_VOLUME, f"Storage volume not found: '{name}' in {state.pool.name}")


def storage_vol_lookup_by_key(call: Call, *, key: str) -> Values:
    """A volume by its key, which is its path."""
    return storage_vol_lookup_by_path(call, path=key)


def storage_vol_lookup_by_path(call: Call, *, path: str) -> Values:
    """A volume by its path, or by that of something in it."""
    for state in storagepool.states(call.office.node):
        for each in state.volumes:
            place = _place(state, each)
            if path == place or path.startswith(f"{place}/"):
                return {"vol": _volume(state, each)}
    raise Failure(failure.NO_VOLUME, f"Storage volume not found: no volume is at {path}")


def storage_vol_get_xml_desc(call: Call, *, vol: Key, flags: int) -> Values:
    """Describe a volume."""
    _ = flags
    state, volume = _find(call.office.node, vol)
    top = Element("volume", type="dir")
    SubElement(top, "name").text = volume.uuid
    SubElement(top, "key").text = _place(state, volume)
    for name, size in _usage(state, volume).items():
        SubElement(top, name, unit="bytes").text = str(size)
    target = SubElement(top, "target")
    SubElement(target, "path").text = _place(state, volume)
    SubElement(target, "format", type="dir")
    return {"xml": text_of(top)}


def storage_vol_get_info(call: Call, *, vol: Key) -> Values:
    """The size of a volume, and how much of it is in use."""
    return {"type": DIRECTORY, **_usage(*_find(call.office.node, vol))}


def storage_vol_get_path(call: Call, *, vol: Key) -> Values:
    """Where it is."""
    return {"name": _place(*_find(call.office.node, vol))}


def _named(node: Node, name: str) -> PoolState:
    try:
        return storagepool.state(node, name)
    except NotFound as error:
        raise Failure(
            failure.NO_POOL, f"Storage pool not found: no pool with the name '{name}'"
        ) from error


def _find(node: Node, vol: Key) -> tuple[PoolState, Volume]:
    state = _named(node, vol["pool"])
    for each in state.volumes:
        if each.uuid == vol["name"]:
            return state, each
    raise Failure(failure.NO_VOLUME, f"Storage volume not found: '{vol['name']}'")


def _key(state: PoolState) -> Key:
    return {"name": state.pool.name, "uuid": _uuid(state)}


def _uuid(state: PoolState) -> str:
    """Return a UUID that follows from the place, as pools have none of their own."""
    return str(uuid5(NAMESPACE_URL, f"pyvz:{state.pool.name}:{state.pool.path}"))


def _volume(state: PoolState, volume: Volume) -> Key:
    return {"pool": state.pool.name, "name": volume.uuid, "key": _place(state, volume)}


def _place(state: PoolState, volume: Volume) -> str:
    return os.fspath(state.pool.path / volume.uuid)


def _sizes(state: PoolState) -> dict[str, int]:
    used = max(0, state.total - state.free)
    return {"capacity": state.total, "allocation": used, "available": state.free}


def _usage(state: PoolState, volume: Volume) -> dict[str, int]:
    home = state.pool.path / volume.uuid
    try:
        usage = storage.find(home).usage(home)
    except (VZError, OSError):
        return {"capacity": 0, "allocation": 0}
    return {"capacity": usage.total, "allocation": usage.used}


def _selected(state: PoolState, flags: int) -> bool:
    asked = flags & (INACTIVE | ACTIVE)
    return not asked or bool(flags & (INACTIVE if state.problem else ACTIVE))
