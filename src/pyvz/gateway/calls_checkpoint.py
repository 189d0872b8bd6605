"""Checkpoints, and backups that go on from them (formatcheckpoint, formatbackup)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from pyvz.errors import CheckpointNotFound
from pyvz.gateway import backupxml, checkpointxml, domain, failure
from pyvz.gateway.calls_domain import description
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.nodexml import text_of
from pyvz.gateway.notes import parsed
from pyvz.model.task import Progress
from pyvz.operations import machinecheckpoint, machinepull, machinepush
from pyvz.operations.machinecheckpoint import Below, Plan
from pyvz.operations.machinepush import Copy
from pyvz.store import checkpoints
from pyvz.store.checkpoints import Checkpoint, Checkpoints
from pyvz.store.pulls import Pull

Key = dict[str, Any]

REDEFINE, QUIESCE = 1, 2  # flags of the creation
DESCENDANTS, LEAVES, NO_LEAVES = 1, 4, 8  # of a list; 1 is "roots" where a domain is asked
NO_DOMAIN, SIZE = 2, 4  # of the description
CHILDREN, METADATA_ONLY, CHILDREN_ONLY = 1, 2, 4  # of the removal
REUSE: Final = 1  # of a backup: its images are there
_VERB: Final = "domain_backup_begin"


def domain_checkpoint_create_xml(
    call: Call, progress: Progress, *, dom: Key, xml_desc: str, flags: int
) -> Values:
    """Begin a checkpoint; with flag 1 the description of one that is there is changed."""
    if flags & ~(REDEFINE | QUIESCE):
        raise Failure(failure.UNSUPPORTED, f"A checkpoint with the flags 0x{flags:x}")
    node, found = call.office.node, domain.find(call.office.node, dom)
    machinecheckpoint.check_kind(found.env)
    item = checkpointxml.read(xml_desc, found)
    if flags & REDEFINE:
        _redefine(call, found, item)
    else:
        item = item._replace(about=description(node, found, live=False))
        quiesce = bool(flags & QUIESCE)
        machinecheckpoint.create(node, found.env.uuid, item, progress, quiesce=quiesce)
    return {"checkpoint": _key(found, item)}


def _redefine(call: Call, found: Domain, item: Checkpoint) -> None:
    known = checkpoints.load(found.env.home)
    if not known.has(item.name) or set(known.get(item.name).disks) != set(item.disks):
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            "Only the description of a checkpoint that is there can be defined anew:"
            " what is not known any more of a disk cannot be",
        )
    env = found.env
    machinecheckpoint.describe(call.office.node, env.uuid, item.name, item.description)


def domain_checkpoint_get_xml_desc(call: Call, *, checkpoint: Key, flags: int) -> Values:
    """Describe a checkpoint; with flag 4 also how much was written since."""
    found, known, item = _find(call, checkpoint)
    sizes = None
    if flags & SIZE:
        if not found.running:
            raise Failure(failure.OPERATION_INVALID, f"Domain is not running: {found.env.name}")
        sizes = machinecheckpoint.bitmaps(call.office.node, found.env, item)
    top = checkpointxml.written(found, item, known.before(item.name), sizes)
    if not flags & NO_DOMAIN and item.about:
        top.append(parsed(item.about, "description that was kept"))
    return {"xml": text_of(top)}


def domain_checkpoint_lookup_by_name(call: Call, *, dom: Key, name: str, flags: int) -> Values:
    """The checkpoint of that name."""
    _ = flags
    found, _, item = _find(call, {"dom": dom, "name": name})
    return {"checkpoint": _key(found, item)}


def domain_list_all_checkpoints(call: Call, *, dom: Key, need_results: int, flags: int) -> Values:
    """Every checkpoint, oldest first, or the first one, the last one, all but the last."""
    found = domain.find(call.office.node, dom)
    items = checkpoints.load(found.env.home).items
    first = items[:1] if flags & DESCENDANTS else items
    return _listed(found, _ends(first, items, flags), need_results)


def domain_checkpoint_list_all_children(
    call: Call, *, checkpoint: Key, need_results: int, flags: int
) -> Values:
    """The one that came after it; with flag 1 all that did."""
    found, known, item = _find(call, checkpoint)
    later = known.after(item.name)
    chosen = later if flags & DESCENDANTS else later[:1]
    return _listed(found, _ends(chosen, known.items, flags), need_results)


def domain_checkpoint_get_parent(call: Call, *, checkpoint: Key, flags: int) -> Values:
    """The one that came before it."""
    _ = flags
    found, known, item = _find(call, checkpoint)
    parent = known.before(item.name)
    if parent is None:
        raise Failure(failure.NO_CHECKPOINT, f"The checkpoint '{item.name}' has no parent")
    return {"parent": _key(found, parent)}


def domain_checkpoint_delete(
    call: Call, progress: Progress, *, checkpoint: Key, flags: int
) -> None:
    """Give it up; with flag 1 those after it too, with 4 only those; with 2 its bitmaps stay."""
    found, _, item = _find(call, checkpoint)
    below = Below(
        itself=not flags & CHILDREN_ONLY,
        later=bool(flags & (CHILDREN | CHILDREN_ONLY)),
        bitmaps=not flags & METADATA_ONLY,
    )
    machinecheckpoint.delete(call.office.node, found.env.uuid, item.name, below, progress)


async def domain_backup_begin(call: Call, arguments: dict[str, Any]) -> None:
    """Begin to copy disks into images, or to serve them; a job that goes on when it is answered."""
    found, wanted, item = await call.office.query(partial(_plan, call, **arguments))
    node, uuid = call.office.node, found.env.uuid

    def run(progress: Progress, begun: Callable[[], None]) -> None:
        plan = Plan(item, begun)
        if isinstance(wanted, Pull):
            machinecheckpoint.pull(node, uuid, wanted, plan, progress)
        else:
            machinecheckpoint.push(node, uuid, wanted, plan, progress)

    await call.office.begin(_VERB, found.env.name, run, call.client.peer)


def domain_backup_get_xml_desc(call: Call, *, dom: Key, flags: int) -> Values:
    """Describe the backup that is under way."""
    _ = flags
    found = domain.find(call.office.node, dom)
    pull = machinepull.under_way(call.office.node, found.env)
    if pull is not None:
        return {"xml": backupxml.written_pull(found, pull)}
    copies = machinepush.under_way(call.office.node, found.env)
    if not copies:
        raise Failure(failure.NO_BACKUP, f"No backup of {found.env.name} is under way")
    return {"xml": backupxml.written(found, copies)}


def _plan(
    call: Call, *, dom: Key, backup_xml: str, checkpoint_xml: str | None, flags: int
) -> tuple[Domain, tuple[Copy, ...] | Pull, Checkpoint | None]:
    if flags & ~REUSE:
        raise Failure(failure.UNSUPPORTED, f"A backup with the flags 0x{flags:x}")
    node, found = call.office.node, domain.find(call.office.node, dom)
    domain.check_machine(found, "prlctl backup stores it, running or not")
    wanted = backupxml.read(backup_xml, found, reuse=bool(flags & REUSE))
    if checkpoint_xml is None:
        return found, wanted, None
    item = checkpointxml.read(checkpoint_xml, found)
    return found, wanted, item._replace(about=description(node, found, live=False))


def _find(call: Call, checkpoint: Key) -> tuple[Domain, Checkpoints, Checkpoint]:
    found = domain.find(call.office.node, checkpoint["dom"])
    known = checkpoints.load(found.env.home)
    try:
        return found, known, known.get(checkpoint["name"])
    except CheckpointNotFound as error:
        name = checkpoint["name"]
        raise Failure(
            failure.NO_CHECKPOINT, f"No domain checkpoint with the name '{name}'"
        ) from error


def _ends(
    chosen: tuple[Checkpoint, ...], items: tuple[Checkpoint, ...], flags: int
) -> list[Checkpoint]:
    """Return those of CHOSEN that have nothing after them, or that have."""
    kept = list(chosen)
    if flags & LEAVES and not flags & NO_LEAVES:
        kept = [each for each in kept if each == items[-1]]
    if flags & NO_LEAVES and not flags & LEAVES:
        kept = [each for each in kept if each != items[-1]]
    return kept


def _listed(found: Domain, items: list[Checkpoint], need_results: int) -> Values:
    keys = [_key(found, each) for each in items] if need_results else []
    return {"checkpoints": keys, "ret": len(items)}


def _key(found: Domain, item: Checkpoint) -> Key:
    return {"name": item.name, "dom": found.key}
