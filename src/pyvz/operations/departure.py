"""An environment that goes to another node: its journal, and what is left behind here.

    begun      nothing has changed here yet
    frozen     its memory is being copied: it goes on when the move fails
    halted     it was stopped for the move: it is started again when the move fails
    deciding   the other node is asked to take over: it alone knows from here on whether it did
    given      it did: only forward
    kept       it did not: only back

`repair` does what a death has left to do.  Between `deciding` and an answer the environment can be
started nowhere but where the other node says; while that node cannot be asked, the answer is
InDoubt.  The caller holds the lease.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

from pyvz.errors import InDoubt, MigrationError, PrivateMissing, VZError
from pyvz.linux import file, mount
from pyvz.migration import address, decision
from pyvz.migration.dial import Peer, dial
from pyvz.migration.offer import TOKEN
from pyvz.model.environment import Environment, Kind
from pyvz.operations import burial, home, livedump, machineleaving, outgoingdisk, ownshot
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.store.journal import Journal, Record

log = logging.getLogger(__name__)

VERB: Final = "migrate"  # of the journal records that `repair` understands
HALTED, DECIDING, GIVEN, KEPT = "halted", "deciding", "given", "kept"
FROZEN: Final = "frozen"
SUFFIX: Final = ".migrated"
_ASK_TIMEOUT: Final = 60.0


def begin(node: Node, env: Environment, data: dict[str, object]) -> Journal:
    """Announce the departure.  data: id, to, ssh, silence, clone, remove, shared."""
    return Journal.begin(node.paths, env.uuid, VERB, home.to_data(env) | data)


def shown_at(node: Node, env: Environment) -> Path:
    """Return where the root of one that is not mounted is mounted to be read."""
    return node.paths.aside / f"{env.uuid}.out"


def seen_at(node: Node, env: Environment) -> Path:
    """Return where it is noted which files of each tree were sent."""
    return node.paths.run / "migrate" / f"{env.uuid}.seen"


def tidy(node: Node, env: Environment) -> None:
    """Take away what only the migration needs.  Idempotent."""
    file.remove_tree(seen_at(node, env))
    place = shown_at(node, env)
    if mount.is_mount_point(place):
        storage.find(env.home).umount(env.home, place)
    with contextlib.suppress(OSError):
        place.rmdir()
    file.remove_tree(env.home / outgoingdisk.COPIES)
    with contextlib.suppress(PrivateMissing):
        storage.find(env.home).forget_streams(env.home)
        ownshot.forget(env.home, outgoingdisk.SHOTS)
    (env.home / TOKEN).unlink(missing_ok=True)


def settle(node: Node, env: Environment, record: Record, outcome: str) -> None:
    """Do what the decision means for this node; may be repeated."""
    frozen = record.step(FROZEN) is not None
    if outcome == decision.TAKEN and not record.data.get("clone"):
        if frozen:
            _end(node, env, shared=bool(record.data.get("shared")))
        give_away(node, env, record)
    elif env.home.exists():
        tidy(node, env)


def _end(node: Node, env: Environment, *, shared: bool) -> None:
    """Take away what runs here of one that runs there."""
    if env.kind == Kind.VM:
        machineleaving.end(node, env)
        return
    livedump.end(node, env, shared=shared)
    livedump.tidy(node, env)


def _go_on(node: Node, env: Environment) -> None:
    """Let one go on that did not go."""
    if env.kind == Kind.VM:
        machineleaving.release(node, env)
        return
    livedump.go_on(node, env)
    livedump.tidy(node, env)


def give_away(node: Node, env: Environment, record: Record) -> None:
    """Forget an environment that another node has; its files stay as *.migrated, or go."""
    shared = bool(record.data.get("shared"))
    link = node.registry.config_path(env)
    if env.home.exists() and not shared:
        tidy(node, env)
    node.registry.remove(env, keep_files=False)
    home.forget(node, env)
    if shared:
        return
    kept = env.home.with_name(env.home.name + SUFFIX)
    if not record.data.get("remove"):
        if env.home.exists():
            burial.bury(node, kept)  # of an earlier migration
            env.home.rename(kept)
            file.fsync_directory(kept.parent)
        _keep_conf(link, kept / env.kind.conf_name)
        return
    burial.bury(node, env.home)


def _keep_conf(link: Path, kept: Path) -> None:
    """Leave <id>.conf.migrated behind, as the original does."""
    aside = link.with_name(link.name + SUFFIX)
    aside.unlink(missing_ok=True)
    if kept.exists():
        aside.symlink_to(kept)


def ask(node: Node, record: Record) -> str:
    """Ask the other node what was decided; raises InDoubt when it cannot be asked."""
    to = str(record.data.get("to") or "")
    ident = str(record.data["id"])
    if not to:
        raise _fetched(record)
    options = [str(word) for word in record.data.get("ssh") or ()]  # type: ignore[attr-defined]
    try:
        with dial(address.parse(to), home.owner_id(node), options=options) as peer:
            return str(_answer(peer, ident, record))
    except InDoubt:
        raise
    except (VZError, OSError) as error:
        raise _in_doubt(record, to, error) from error


def _answer(peer: Peer, ident: str, record: Record) -> object:
    expected = str(record.data.get("node") or "")
    if expected and peer.node != expected:
        raise MigrationError(f"{peer.address} is another node than before")
    return peer.call("outcome", id=ident, timeout=_ASK_TIMEOUT)["outcome"]


def _in_doubt(record: Record, to: str, error: VZError | OSError) -> InDoubt:
    name = record.data.get("name")
    return InDoubt(
        f"{name} was being taken over by {to} when the connection broke: that node has to be asked",
        details=str(error),
        hint="It is asked again by every command, and every minute. Should that node be gone for "
        f"ever: vzmigrate --settle here {record.uuid}",
    )


def _fetched(record: Record) -> InDoubt:
    """Return the error of whoever has to wait for the node that fetched it (pulled.py)."""
    return InDoubt(
        f"{record.data.get('name')} was being fetched by another node when the connection broke: "
        "only that node knows whether it has it",
        hint="It tells this node by itself, within seconds of reaching it. Should it be gone for "
        f"ever: vzmigrate --settle here {record.uuid}",
    )


def repair(node: Node, record: Record) -> None:
    """Finish or undo a departure that was killed, and close its record; repeatable."""
    env = home.from_data(record.uuid, record.data)
    log.warning("%s: cleaning up an unfinished migration", env.name)
    outcome = known_outcome(record)
    if env.kind == Kind.CT:
        node.checkpoint.settle(env.uuid, livedump.SETTLE)
    if outcome is None:
        outcome = ask(node, record)
        log.warning("%s: the other node says: %s", env.name, outcome)
    end(node, env, record, outcome)


def known_outcome(record: Record) -> str | None:
    """Return what is known of the decision; None: the other node has to be asked."""
    if record.step(GIVEN):
        return decision.TAKEN
    if record.step(KEPT) or not record.step(DECIDING):
        return decision.REFUSED
    return None


def end(node: Node, env: Environment, record: Record, outcome: str) -> None:
    """Do what is left to do, and close the record."""
    settle(node, env, record, outcome)
    if outcome != decision.TAKEN:
        if record.step(FROZEN) or env.kind == Kind.VM:
            _go_on(node, env)
        else:
            livedump.tidy(node, env)  # the place for images comes before the freeze
        if record.step(HALTED):
            mark(node, env)
    Journal.forget(node.paths, record.uuid)


def force(node: Node, env: Environment, *, here: bool) -> None:
    """The administrator decides in place of the other node; raises MigrationError."""
    record = Journal.leftover(node.paths, env.uuid)
    if record is None or record.verb != VERB or known_outcome(record) is not None:
        raise MigrationError(f"{env.name} is not between two nodes")
    end(node, env, record, decision.REFUSED if here else decision.TAKEN)


def mark(node: Node, env: Environment) -> None:
    """Have it started again: it was stopped, or has died, because of a move."""
    _mark(node, env).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.write_atomic(_mark(node, env), env.uuid)


def _mark(node: Node, env: Environment) -> Path:
    return node.paths.lib / "migration" / f"{env.uuid}.restart"


def marked(node: Node) -> list[str]:
    """Return the UUIDs of those that were stopped for a move that failed."""
    return [path.stem for path in (node.paths.lib / "migration").glob("*.restart")]


def unmark(node: Node, uuid: str) -> None:
    """It was started again, or is not to be."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(node.paths.lib / "migration" / f"{uuid}.restart")  # noqa: PTH108
