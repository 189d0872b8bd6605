"""What killed verbs left behind on disk: who repairs which journal record.

Start and stop are repaired by `lifecycle`, which asks here for the verbs that make, move and
remove homes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pyvz.errors import Locked, VZError
from pyvz.operations import (
    arrival,
    capture,
    convertlayout,
    departure,
    disk,
    dump,
    home,
    machinebackup,
    machineblockjob,
    machineheal,
    machinemove,
    machinepush,
    shot,
    succession,
)
from pyvz.operations.node import Node
from pyvz.store.journal import Journal, Record

log = logging.getLogger(__name__)


def _repairs() -> dict[str, Callable[[Node, Record], None]]:
    """Return who repairs which verb."""
    makers = (home, shot, disk, dump)
    found = {verb: module.repair for module in makers for verb in module.VERBS}
    single = (convertlayout, capture, succession, arrival, departure)
    machines = (machinebackup, machineblockjob, machineheal, machinemove, machinepush)
    return found | {module.VERB: module.repair for module in (*single, *machines)}


def repair(node: Node, record: Record) -> bool:
    """Finish or undo what `record` tells of, and close it; False when it is another's business.

    The caller holds the lease of the record's environment.
    """
    found = _repairs().get(record.verb)
    if found is None:
        return False
    found(node, record)
    return True


def repair_all(node: Node) -> None:
    """Repair every record that is left (start of vzd); one that fails does not stop the others.

    Environments that are no more, or were not yet, are found only by their records.
    """
    for record in Journal.all(node.paths):
        if record.verb not in _repairs():
            continue
        env = home.from_data(record.uuid, record.data)
        try:
            with node.lease(env, "recovery", timeout=0.0):
                # Only under the lease it is certain that nobody is working on it just now.
                now = Journal.leftover(node.paths, record.uuid)
                if now is not None:
                    repair(node, now)
        except Locked as busy:
            log.info("%s: left alone: %s", env.name, busy)
        except (VZError, OSError):
            log.exception("%s: an unfinished %s could not be cleaned up", env.name, record.verb)
