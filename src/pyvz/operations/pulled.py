"""A container that this node fetches: the node that gives it gets to know what was decided.

That node cannot ask for it, as others do whose connection broke: it was this one that dialled, and
only this one need have a key.  So this one tells, until it is heard:

    <root>/var/lib/pyvz/migration/<id>.pull   JSON: the environment, from whom, options of ssh

It is there, durable, from before the decision until the giving node knows it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyvz.errors import MigrationError, VZError
from pyvz.linux import file
from pyvz.migration import address, decision
from pyvz.migration.dial import dial
from pyvz.model.environment import Environment
from pyvz.operations import departure, home, provision
from pyvz.operations.node import Node
from pyvz.store.journal import Journal

log = logging.getLogger(__name__)

_SUFFIX: Final = ".pull"
_TELL_TIMEOUT: Final = 120.0  # seconds; the other node may have to end processes
_LONGEST: Final = 1 << 16  # bytes of a note


class Pulled(NamedTuple):
    """One migration whose giving node does not know yet.  source: [user@]host[:port]."""

    ident: str
    env: Environment
    source: str
    node: str
    ssh: tuple[str, ...]


def note(node: Node, pulled: Pulled) -> None:
    """Take note of one before it is decided."""
    fields = {
        "env": home.to_data(pulled.env) | {"uuid": pulled.env.uuid},
        "source": pulled.source,
        "node": pulled.node,
        "ssh": list(pulled.ssh),
    }
    path = _path(node, pulled.ident)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.write_atomic(path, json.dumps(fields), 0o600)


def forget(node: Node, ident: str) -> None:
    """The giving node knows."""
    _path(node, ident).unlink(missing_ok=True)


def told(node: Node, pulled: Pulled) -> str:
    """Tell the giving node, and return what was decided.

    Raises Locked while the migration goes on here, ConnectionFailed and the like.
    """
    outcome = decision.known(node.paths, pulled.ident)
    if outcome is None:
        with node.lease(pulled.env, "migrate", timeout=0.0):
            provision.repair_leftover(node, pulled.env)
            outcome = decision.ask(node.paths, pulled.ident)
    where = address.parse(pulled.source)
    with dial(where, home.owner_id(node), options=pulled.ssh) as peer:
        if peer.node != pulled.node:
            raise MigrationError(f"{where} is another node than before")
        peer.call("decided", timeout=_TELL_TIMEOUT, id=pulled.ident, outcome=outcome)
    forget(node, pulled.ident)
    decision.forget(node.paths, pulled.ident)
    log.info("%s: %s knows now that it was %s", pulled.env.name, where, outcome)
    return outcome


def tell(node: Node, pulled: Pulled, poll: Callable[[], None], *, patience: float) -> str | None:
    """Tell it for a while; returns what was decided, None when the other node was not reached."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return told(node, pulled)
        except (VZError, OSError) as error:
            log.info("%s: %s does not know yet: %s", pulled.env.name, pulled.source, error)
        if time.monotonic() > deadline:
            return None
        poll()
        time.sleep(1.0)


def tell_all(node: Node) -> bool:
    """Tell all giving nodes that can be reached; whether there are others left."""
    left = False
    for path in sorted(_directory(node).glob(f"*{_SUFFIX}")):
        try:
            told(node, _read(path))
        except FileNotFoundError:
            continue
        except (VZError, OSError) as error:
            log.info("%s: the other node does not know yet: %s", path.name, error)
            left = True
    return left


def decided(node: Node, ident: str, outcome: str) -> None:
    """Settle what was given to a node that tells its decision; nothing to settle is fine.

    Raises Locked while the migration goes on here.
    """
    if outcome not in {decision.TAKEN, decision.REFUSED}:
        raise MigrationError(f"'{outcome[:40]}' is no decision")
    for record in Journal.all(node.paths):
        if record.verb != departure.VERB or record.data.get("id") != ident:
            continue
        env = home.from_data(record.uuid, record.data)
        with node.lease(env, "migrate"):
            now = Journal.leftover(node.paths, env.uuid)
            if now is None or now.verb != departure.VERB or now.data.get("id") != ident:
                return
            log.warning("%s: the other node says: %s", env.name, outcome)
            known = departure.known_outcome(now)
            if known == decision.REFUSED and outcome == decision.TAKEN:
                raise MigrationError(f"{env.name} was never offered")
            departure.end(node, env, now, known or outcome)


def _read(path: Path) -> Pulled:
    try:
        fields: dict[str, Any] = json.loads(file.read_text_limited(path, _LONGEST))
        env = home.from_data(str(fields["env"]["uuid"]), fields["env"])
        ssh = tuple(str(word) for word in fields["ssh"])
        return Pulled(path.stem, env, str(fields["source"]), str(fields["node"]), ssh)
    except (ValueError, KeyError, TypeError) as error:
        raise MigrationError(f"{path} cannot be read") from error


def _directory(node: Node) -> Path:
    return node.paths.lib / "migration"


def _path(node: Node, ident: str) -> Path:
    return decision.path_of(node.paths, ident).with_suffix(_SUFFIX)
