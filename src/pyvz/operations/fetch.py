"""Fetch an environment from another node: we dial and ask, and are the side that takes over."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any, Final

from pyvz.errors import VZError
from pyvz.migration import decision, messages
from pyvz.migration.dial import Peer
from pyvz.migration.messages import Message
from pyvz.migration.request import Report, Request
from pyvz.model.task import Progress
from pyvz.operations import pulled
from pyvz.operations.connect import connected
from pyvz.operations.immigrate import SESSION_TIMEOUT, Arriving, answer, answers_of
from pyvz.operations.node import Node
from pyvz.operations.pulled import Pulled

log = logging.getLogger(__name__)

_TELL_PATIENCE: Final = 60.0  # seconds in which the giving node is told again and again


def fetch(node: Node, source: str, ref: str, request: Request, progress: Progress) -> Report:
    """Have another node give us an environment: it asks, we answer, on the connection we made."""
    fetched: list[Pulled] = []
    try:
        return _fetch(node, (source, ref, request), fetched, progress)
    except VZError as error:
        if not fetched:
            raise
        log.warning("%s: the connection broke at the end: %s", ref, error)
        progress.stage(f"Telling {source} what was decided")
        outcome = pulled.tell(node, fetched[0], progress.check, patience=_TELL_PATIENCE)
        if (outcome or decision.known(node.paths, fetched[0].ident)) != decision.TAKEN:
            raise
        return _came(node, fetched[0], outcome)


def _fetch(
    node: Node, what: tuple[str, str, Request], fetched: list[Pulled], progress: Progress
) -> Report:
    """Fetch; `fetched` gets what the other node has to be told when it fails."""
    source, ref, request = what
    with connected(node, source, request, progress) as peer:
        peer.wire.send(messages.make("pull", ref=ref, options=request.to_json()))
        with Arriving(node, peer.wire) as arriving:

            def commit(message: Message) -> dict[str, Any]:
                ident, env = arriving.arriving()
                fetched[:] = [Pulled(ident, env, source, peer.node, request.ssh)]
                pulled.note(node, fetched[0])
                return arriving.commit(message)

            result = _answering(answers_of(node, arriving) | {"commit": commit}, peer, progress)
        for each in fetched:
            pulled.forget(node, each.ident)
        return Report.from_json(result)


def _came(node: Node, what: Pulled, outcome: str | None) -> Report:
    """Return the report of one that is here although the connection broke."""
    problem = "" if outcome else f"{what.source} could not be told yet: it is told when it answers"
    return Report(
        uuid=what.env.uuid,
        name=what.env.name,
        host=socket.gethostname(),
        seconds=0.0,
        still=0.0,
        rounds=(),
        sent=0,
        memory=0,
        started=what.env.uuid in node.runtime.running(),
        problem=problem,
    )


def _answering(
    answers: dict[str, Callable[[Message], dict[str, Any]]], peer: Peer, progress: Progress
) -> dict[str, Any]:
    """Answer the giving node's questions until it says what has become of it all."""
    while True:
        message = peer.wire.receive(SESSION_TIMEOUT, poll=progress.check)
        if message["is"] == "done":
            found: dict[str, Any] = message["result"]
            return found
        if message["is"] == "failed":
            raise messages.error_of(message, peer.host)
        if message["is"] == "progress":
            progress.stage(f"{peer.host}: {message['stage']}")
        else:
            peer.wire.send(answer(answers, message))
