"""An environment that comes from another node: from the reservation of its id to its home.

    <parent>/.create-<uuid>/    being filled; nobody knows it yet
    decision "taken"            from here on it is this node's (migration/decision.py)
    <parent>/<uuid>/            its home; registered

Before the decision everything is taken away again when the other node goes away or a step fails;
after it only forward, if need be by `repair`.  The caller holds the lease of the UUID.
On shared storage the home stays where it is, and only owner and registration change.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyvz.linux import file, mount
from pyvz.migration import decision
from pyvz.migration.offer import Offer
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.network import plan as network_plan
from pyvz.network.address import Reservations
from pyvz.operations import departure, home, liverestore, machinearrival
from pyvz.operations.node import Node
from pyvz.store.journal import Journal, Record

log = logging.getLogger(__name__)

VERB: Final = "immigrate"  # of the journal records that `repair` understands
LIVE: Final = "live"  # step of the journal: it comes with its memory
LAZY: Final = "lazy"  # step of the journal: a part of that comes when it runs already


def begin(node: Node, env: Environment, ident: str, *, shared: bool) -> Journal:
    """Announce the arrival and make the directory that is to be filled."""
    data = home.to_data(env) | {"id": ident, "shared": shared}
    journal = Journal.begin(node.paths, env.uuid, VERB, data)
    try:
        if not shared:
            env.home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            staging = home.staging_of(env)
            staging.mkdir(mode=0o700)
            (staging / home.UNBORN).write_text(env.uuid)
    except BaseException:
        give_up(node, env, journal, shared=shared)
        raise
    return journal


def reserve_addresses(node: Node, env: Environment, config: Config) -> None:
    """Keep the addresses from others; raises AddressInUse."""
    Reservations(node.paths).set(env.uuid, network_plan.reserved(config))


def configuration(node: Node, env: Environment, offer: Offer) -> ConfFile:
    """Return the ve.conf that the environment has over here."""
    conf = ConfFile.parse(offer.conf)
    values = {"VEID": env.envid, "UUID": env.uuid, "NAME": env.name}
    if env.kind == Kind.VM:
        values["VE_PRIVATE"] = os.fspath(env.home)
    else:
        values["VE_PRIVATE"] = home.private_of(node, env)
        values["VE_ROOT"] = home.explicit(env, node.config().ve_root)
    for key, value in values.items():
        conf.set(key, value)
    return conf


def settle_in(
    node: Node, env: Environment, conf: ConfFile, journal: Journal, *, shared: bool
) -> None:
    """Give one that arrives with its memory its place and registration before the decision.

    It is still unborn, and whoever takes its lease repairs first: it is taken away again then.
    """
    journal.note(LIVE)
    if shared:  # the home is the other node's until the decision: nothing in it is written
        node.registry.attach(env)
    else:
        staging = home.staging_of(env)
        home.take_ownership(node, staging)
        file.write_atomic(staging / env.kind.conf_name, conf.render())
        home.check_free(env.home)
        staging.rename(env.home)
        node.registry.add(env, conf)


def give_up(node: Node, env: Environment, journal: Journal, *, shared: bool) -> None:
    """Take everything away again, before a decision; closes the record."""
    record = Journal.leftover(node.paths, env.uuid)
    _undo(node, env, shared=shared, live=record is not None and record.step(LIVE) is not None)
    journal.done()


def _undo(node: Node, env: Environment, *, shared: bool, live: bool) -> None:
    if live:
        before = machinearrival if env.kind == Kind.VM else liverestore
        before.before_decision(node, env)
    Reservations(node.paths).release(env.uuid)
    node.id_ranges.release(env.uuid)
    if shared:
        node.registry.remove(env, keep_files=True)
    else:
        mount.umount(place_of(node, env.uuid))
        with contextlib.suppress(OSError):
            place_of(node, env.uuid).rmdir()
        home.abandon(node, env)


def place_of(node: Node, uuid: str) -> Path:
    """Return where the tree of a disk is mounted while it is filled."""
    return node.paths.aside / f"{uuid}.in"


def commit(
    node: Node,
    env: Environment,
    conf: ConfFile,
    what: tuple[Journal, str],
    then: Callable[[], None] = lambda: None,
) -> None:
    """Decide that the environment is ours and give it its place; the record is the caller's.

    what: journal and id of the migration.  then: is called as soon as it is decided.
    Raises MigrationError when the other node has called it off; nothing has happened then.  Any
    other error comes after the decision: `repair` goes on.
    """
    journal, ident = what
    record = Journal.leftover(node.paths, env.uuid)
    assert record is not None  # noqa: S101  it is ours
    shared = bool(record.data["shared"])
    staging = home.staging_of(env)
    if not shared and staging.exists():
        home.take_ownership(node, staging)
        file.write_atomic(staging / env.kind.conf_name, conf.render())
        file.fsync_directory(staging)
    elif shared:
        journal.note("conf", {"text": conf.render()})
    decision.take(node.paths, ident)
    then()
    _finish(node, env, conf, shared=shared)


def _finish(node: Node, env: Environment, conf: ConfFile, *, shared: bool) -> None:
    """Do all that follows the decision; may be repeated."""
    if shared:
        home.take_ownership(node, env.home)
        node.registry.add(env, conf)
        return
    staging = home.staging_of(env)
    if staging.exists():
        home.check_free(env.home)
        staging.rename(env.home)
    node.registry.add(env, conf)
    file.fsync_directory(env.home.parent)
    (env.home / home.UNBORN).unlink(missing_ok=True)


def repair(node: Node, record: Record) -> None:
    """Finish or undo an arrival that was killed, and close its record; repeatable."""
    env = home.from_data(record.uuid, record.data)
    shared = bool(record.data.get("shared"))
    if decision.known(node.paths, str(record.data["id"])) == decision.TAKEN:
        log.warning("%s: finishing its arrival from another node", env.name)
        step = record.step("conf")
        if step is not None:
            conf = ConfFile.parse(str(step.data["text"]))
        else:
            staging = home.staging_of(env)
            place = staging if staging.exists() else env.home
            conf = ConfFile.parse(file.read_text_limited(place / env.kind.conf_name))
        _finish(node, env, conf, shared=shared)
        if record.step(LIVE):
            went = record.step(liverestore.GOING) is not None
            if env.kind == Kind.VM:
                paused = record.step(machinearrival.PAUSED) is not None
                machinearrival.after_death(node, env, paused=paused)
            elif went and record.step(LAZY):
                liverestore.lost_by_death(node, env)
                departure.mark(node, env)
            else:
                liverestore.after_death(node, env, went=went)
    else:
        log.warning("%s: its arrival from another node was not finished: undone", env.name)
        _undo(node, env, shared=shared, live=record.step(LIVE) is not None)
    Journal.forget(node.paths, record.uuid)
