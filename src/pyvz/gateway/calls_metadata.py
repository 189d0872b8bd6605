"""Texts and XML that clients note about a domain (`virsh desc`, `virsh metadata`)."""

from __future__ import annotations

from typing import Any

from pyvz.gateway import domain, failure, notes
from pyvz.gateway.calls_lifecycle import change
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.model import event
from pyvz.model.task import Progress

Key = dict[str, Any]


def domain_set_metadata(  # noqa: PLR0913  the fields of the call
    call: Call,
    progress: Progress,
    *,
    dom: Key,
    type: int,
    metadata: str | None,
    key: str | None,
    uri: str | None,
    flags: int,
) -> None:
    """Note a description (0), a title (1), or XML of the client's own (2) under its URI."""
    _ = flags
    if type == 0:
        change(call, progress, dom, ("description", metadata or ""))
        return
    found = domain.find(call.office.node, dom)
    notes.change(found.env.home, type, metadata, (key or "", uri or ""))
    call.office.node.publish(event.METADATA, found.env, type=str(type), uri=uri or "")


def domain_get_metadata(call: Call, *, dom: Key, type: int, uri: str | None, flags: int) -> Values:
    """What was noted; raises Failure (80) where nothing was."""
    _ = flags
    text = notes.noted(domain.find(call.office.node, dom), type, uri or "")
    if not text:
        raise Failure(failure.NO_METADATA, "There is no such metadata")
    return {"metadata": text}
