"""Snapshots: names are the GUIDs without braces, descriptions hold what `snapshot-list` shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement

from pyvz.errors import BadValue, SnapshotNotFound
from pyvz.gateway import domain, failure
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.gateway.nodexml import text_of
from pyvz.gateway.notes import parsed
from pyvz.model.environment import Environment, canonical_uuid
from pyvz.model.task import Progress
from pyvz.operations import lifecycle, machineguest, snapshot
from pyvz.operations.snapshot import Wanted
from pyvz.store import savedstates
from pyvz.store.savedstates import POWEROFF, SavedState, SavedStates

Key = dict[str, Any]
Test = Callable[[SavedStates, SavedState], bool]

CHILDREN, CHILDREN_ONLY = 1, 4  # flags of the removal
ROOTS, DESCENDANTS = 1, 1  # flags of the list, and of that of children
REVERT_RUNNING, REVERT_PAUSED = 1, 2
CREATE_REDEFINE: Final = 1
CREATE_DISK_ONLY, CREATE_QUIESCE, CREATE_ATOMIC, CREATE_VALIDATE = 16, 64, 128, 512
_NEVER: Final = {2: "current", 4: "no-metadata", 8: "halt", 32: "reuse-external",
                 256: "live"}  # fmt: skip
_DATE: Final = "%Y-%m-%d %H:%M:%S"


def domain_snapshot_create_xml(
    call: Call, progress: Progress, *, dom: Key, xml_desc: str, flags: int
) -> Values:
    """Take a snapshot; of the description, name and description count."""
    if flags & CREATE_REDEFINE:
        return _described_anew(call, domain.find(call.office.node, dom).env, xml_desc)
    for flag, word in _NEVER.items():
        if flags & flag:
            raise Failure(failure.UNSUPPORTED, f"A snapshot with --{word} is not supported")
    known = CREATE_DISK_ONLY | CREATE_QUIESCE | CREATE_ATOMIC | CREATE_VALIDATE
    if flags & ~known:
        raise Failure(failure.UNSUPPORTED, f"A snapshot with the flags 0x{flags & ~known:x}")
    node, found = call.office.node, domain.find(call.office.node, dom)
    wanted = wanted_of(xml_desc)
    if flags & CREATE_DISK_ONLY:
        wanted = wanted._replace(memory=False)
    frozen = flags & CREATE_QUIESCE and domain.is_machine(found) and found.running
    with machineguest.frozen(node, found.env) if frozen else nullcontext():
        taken = snapshot.create(node, found.env.uuid, wanted, progress=progress)
    return {"snap": _key(call, found.env, taken.guid)}


def _described_anew(call: Call, env: Environment, xml: str) -> Values:
    """Give a snapshot that is there other texts (snapshot-edit); nothing else of it can change."""
    top = parsed(xml, "description of the snapshot")
    states = savedstates.load(env.home)
    try:
        item = states.get(top.findtext("name") or "")
    except (SnapshotNotFound, BadValue) as error:
        raise Failure(
            failure.OPERATION_UNSUPPORTED, "Only a snapshot that is there is described anew"
        ) from error
    for part, there in (("state", _state(item)), ("parent/name", item.parent.strip("{}"))):
        if (top.findtext(part) or "") != there:
            raise Failure(
                failure.OPERATION_UNSUPPORTED,
                f"<{part}> of a snapshot cannot be changed, only its description",
            )
    name, _, description = (top.findtext("description") or "").partition("\n")
    snapshot.describe(call.office.node, env.uuid, item.guid, (name, description))
    return {"snap": _key(call, env, item.guid)}


def wanted_of(xml: str) -> Wanted:
    """Return the snapshot that a description asks for; raises Failure naming what cannot be.

    It is of all disks and in their images, so that a disk may be named, but not left out or given
    a file of its own.
    """
    top = parsed(xml, "description of the snapshot")
    if top.tag != "domainsnapshot":
        raise Failure(failure.XML, f"A <{top.tag}> is no snapshot")
    for each in top:
        if each.tag not in {"name", "description", "disks", "memory"}:
            raise Failure(failure.UNSUPPORTED, f"The element <{each.tag}> of a snapshot")
    for disk in top.iterfind("disks/*"):
        if disk.get("snapshot") not in (None, "internal") or len(disk):
            raise Failure(
                failure.UNSUPPORTED,
                "A snapshot is of all disks, in their images: none is left out or goes to a file",
            )
    memory = top.find("memory")
    if memory is not None and memory.get("snapshot") not in (None, "internal", "no"):
        raise Failure(failure.UNSUPPORTED, "The memory of a snapshot does not go to a file")
    return Wanted(
        name=top.findtext("name") or "",
        description=top.findtext("description") or "",
        memory=memory is None or memory.get("snapshot") != "no",
    )


def domain_snapshot_get_xml_desc(call: Call, *, snap: Key, flags: int) -> Values:
    """Describe a snapshot."""
    _ = flags
    env, states, item = _find(call, snap)
    top = Element("domainsnapshot")
    SubElement(top, "name").text = _name(item)
    text = "\n".join(part for part in (item.name, item.description) if part)
    if text:
        SubElement(top, "description").text = text
    SubElement(top, "state").text = _state(item)
    if item.parent:
        SubElement(SubElement(top, "parent"), "name").text = item.parent.strip("{}")
    SubElement(top, "creationTime").text = str(_seconds(item.date))
    about = SubElement(top, "domain")
    SubElement(about, "uuid").text = env.uuid
    _ = states
    return {"xml": text_of(top)}


def domain_snapshot_lookup_by_name(call: Call, *, dom: Key, name: str, flags: int) -> Values:
    """A snapshot by its GUID, or by its name where that is of one snapshot only."""
    _ = flags
    env = domain.find(call.office.node, dom).env
    items = savedstates.load(env.home).items
    guid = canonical_uuid(name)
    found = [each for each in items if _name(each) == guid or each.name == name]
    if len(found) != 1:
        raise Failure(failure.NO_SNAPSHOT, f"No domain snapshot with the name '{name}'")
    return {"snap": _key(call, env, found[0].guid)}


def domain_list_all_snapshots(call: Call, *, dom: Key, need_results: int, flags: int) -> Values:
    """Every snapshot, or those without parent or children."""
    env = domain.find(call.office.node, dom).env
    states = savedstates.load(env.home)
    found = [_key(call, env, each.guid) for each in _selected(states, flags)]
    return {"snapshots": found if need_results else [], "ret": len(found)}


def domain_snapshot_num(call: Call, *, dom: Key, flags: int) -> Values:
    """How many there are."""
    env = domain.find(call.office.node, dom).env
    return {"num": len(_selected(savedstates.load(env.home), flags))}


def domain_snapshot_list_names(call: Call, *, dom: Key, maxnames: int, flags: int) -> Values:
    """Their names."""
    env = domain.find(call.office.node, dom).env
    found = [_name(each) for each in _selected(savedstates.load(env.home), flags)]
    return {"names": found[: max(0, maxnames)]}


def domain_snapshot_list_all_children(
    call: Call, *, snapshot: Key, need_results: int, flags: int
) -> Values:
    """Those below one: directly, or with flag 1 all."""
    env, states, item = _find(call, snapshot)
    found = [_key(call, env, each.guid) for each in _below(states, item, flags)]
    return {"snapshots": found if need_results else [], "ret": len(found)}


def domain_snapshot_num_children(call: Call, *, snap: Key, flags: int) -> Values:
    """How many are below one."""
    _, states, item = _find(call, snap)
    return {"num": len(_below(states, item, flags))}


def domain_snapshot_list_children_names(
    call: Call, *, snap: Key, maxnames: int, flags: int
) -> Values:
    """Their names."""
    _, states, item = _find(call, snap)
    found = [_name(each) for each in _below(states, item, flags)]
    return {"names": found[: max(0, maxnames)]}


def domain_has_current_snapshot(call: Call, *, dom: Key, flags: int) -> Values:
    """Whether the disks go on from a snapshot."""
    _ = flags
    env = domain.find(call.office.node, dom).env
    return {"result": int(bool(savedstates.load(env.home).current))}


def domain_snapshot_current(call: Call, *, dom: Key, flags: int) -> Values:
    """The snapshot that the disks go on from."""
    _ = flags
    env = domain.find(call.office.node, dom).env
    current = savedstates.load(env.home).current
    if not current:
        raise Failure(failure.NO_SNAPSHOT, f"The domain {env.name} has no current snapshot")
    return {"snap": _key(call, env, current)}


def domain_snapshot_is_current(call: Call, *, snap: Key, flags: int) -> Values:
    """Whether it is that one."""
    _ = flags
    _, states, item = _find(call, snap)
    return {"current": int(states.current == item.guid)}


def domain_snapshot_has_metadata(call: Call, *, snap: Key, flags: int) -> Values:
    """Ours have none that would be lost."""
    _ = flags
    _find(call, snap)
    return {"metadata": 0}


def domain_snapshot_get_parent(call: Call, *, snap: Key, flags: int) -> Values:
    """The snapshot that it was taken after."""
    _ = flags
    env, _, item = _find(call, snap)
    if not item.parent:
        raise Failure(failure.NO_SNAPSHOT, f"The snapshot {_name(item)} has no parent")
    return {"snap": _key(call, env, item.parent)}


def domain_revert_to_snapshot(call: Call, progress: Progress, *, snap: Key, flags: int) -> None:
    """Bring disks and configuration back; one that runs is stopped for it, as by every driver."""
    node = call.office.node
    env, _, item = _find(call, snap)
    if domain.lookup(node, env.uuid).running:
        lifecycle.stop(node, env.uuid, options=lifecycle.StopOptions(kill=True), progress=progress)
    snapshot.switch(node, env.uuid, item.guid, progress=progress)
    if flags & (REVERT_RUNNING | REVERT_PAUSED) and not domain.lookup(node, env.uuid).running:
        lifecycle.start(node, env.uuid, progress=progress)
    if flags & REVERT_PAUSED:
        lifecycle.pause(node, env.uuid)


def domain_snapshot_delete(call: Call, progress: Progress, *, snap: Key, flags: int) -> None:
    """Forget it, with flag 1 all below it too, with flag 4 only those."""
    node = call.office.node
    env, states, item = _find(call, snap)
    if flags & CHILDREN_ONLY:
        for each in states.children(item.guid):
            snapshot.delete(node, env.uuid, each.guid, children=True, progress=progress)
        return
    below = bool(flags & CHILDREN)
    snapshot.delete(node, env.uuid, item.guid, children=below, progress=progress)


def _find(call: Call, snap: Key) -> tuple[Environment, SavedStates, SavedState]:
    env = domain.find(call.office.node, snap["dom"]).env
    states = savedstates.load(env.home)
    try:
        return env, states, states.get(snap["name"])
    except (SnapshotNotFound, BadValue) as error:
        raise Failure(
            failure.NO_SNAPSHOT, f"No domain snapshot with the name '{snap['name']}'"
        ) from error


def _selected(states: SavedStates, flags: int) -> list[SavedState]:
    roots = [each for each in states.items if not (flags & ROOTS and each.parent)]
    return _filtered(states, roots, flags)


def _below(states: SavedStates, item: SavedState, flags: int) -> list[SavedState]:
    """Return those below one: directly, or all."""
    every = states.subtree(item.guid)[1:] if flags & DESCENDANTS else states.children(item.guid)
    return _filtered(states, every, flags)


def _filtered(states: SavedStates, items: Iterable[SavedState], flags: int) -> list[SavedState]:
    """Return what is selected: of each group of filters those that one of its flags wants."""
    found = list(items)
    for group in _FILTERS:
        if wanted := [test for flag, test in group.items() if flags & flag]:
            found = [each for each in found if any(test(states, each) for test in wanted)]
    return found


def _has_memory(_: SavedStates, item: SavedState) -> bool:
    return item.state not in ("", POWEROFF)


def _has_children(states: SavedStates, item: SavedState) -> bool:
    return bool(states.children(item.guid))


def _key(call: Call, env: Environment, guid: str) -> Key:
    return {"name": guid.strip("{}"), "dom": domain.lookup(call.office.node, env.uuid).key}


def _state(item: SavedState) -> str:
    return "shutoff" if item.state in ("", POWEROFF) else "running"


def _name(item: SavedState) -> str:
    return item.guid.strip("{}")


def _seconds(date: str) -> int:
    """Return a date of Snapshots.xml (local time) as seconds since the epoch, 0 for none."""
    try:
        return int(time.mktime(time.strptime(date, _DATE)))
    except (ValueError, OverflowError):
        return 0


# Flags of the lists, in groups.  All of ours are inside the images, and need nothing told again.
_FILTERS: Final[tuple[dict[int, Test], ...]] = (
    {2: lambda *_: False, 16: lambda *_: True},  # metadata or not
    {4: lambda *given: not _has_children(*given), 8: _has_children},  # leaves or not
    {32: lambda *given: not _has_memory(*given), 64: _has_memory, 128: lambda *_: False},
    {256: lambda *_: True, 512: lambda *_: False},  # in the images, or in files of their own
)
