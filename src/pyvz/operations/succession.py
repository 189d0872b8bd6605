"""Another home takes the place of an environment's present one (restore in place).

    <parent>/.restore-<uuid>/   the successor, being built
    <parent>/.delete-<uuid>/    the former home

The step "swap" of the journal says that the successor is whole: a death before it takes the
successor away, a death after it is repaired forwards.  The caller holds the lease.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pyvz.linux import file, mount
from pyvz.model.environment import Environment
from pyvz.model.task import NoProgress
from pyvz.operations import home
from pyvz.operations.node import Node
from pyvz.store.journal import Journal, Record

log = logging.getLogger(__name__)

VERB: Final = "restore"
_SWAP: Final = "swap"


@contextmanager
def succeeding(node: Node, env: Environment) -> Iterator[Path]:
    """Build a home: the block fills the directory it is given; leaving it gives it the place.

    Whatever fails in the block leaves the present home as it is, and nothing else behind.
    """
    staging = _staging_of(env)
    with Journal.begin(node.paths, env.uuid, VERB, home.to_data(env)) as journal:
        try:
            with home.storage_errors(f"{env.name} could not be restored"):
                staging.mkdir(mode=0o700)
                yield staging
        except BaseException:
            _abandon(node, env)
            journal.done()
            raise
        journal.note(_SWAP)
        _swap(env)


def repair(node: Node, record: Record) -> None:
    """Undo or finish a restore in place that was killed, and close its record; repeatable."""
    env = home.from_data(record.uuid, record.data)
    log.warning("%s: cleaning up an unfinished restore", env.name)
    if record.step(_SWAP):
        _swap(env)
    else:
        _abandon(node, env)
    Journal.forget(node.paths, record.uuid)


def _staging_of(env: Environment) -> Path:
    return env.home.with_name(f".restore-{env.uuid}")


def _abandon(node: Node, env: Environment) -> None:
    mount.umount(node.root(env))  # a tree is mounted there while it is filled
    home.dismantle(_staging_of(env), NoProgress())


def _swap(env: Environment) -> None:
    """Rename both homes and remove the former; may be repeated from any step."""
    staging, grave = _staging_of(env), home.grave_of(env)
    if staging.exists():
        if env.home.exists():
            home.dismantle(grave, NoProgress())
            env.home.rename(grave)
        staging.rename(env.home)
        file.fsync_directory(env.home.parent)
    home.dismantle(grave, NoProgress())
