"""Migration by libvirt's clients: begin, prepare, perform, finish, confirm.

All the work is one call, `perform` on the giving node, which runs the same operation as `prlctl
migrate` over a connection of the nodes' own.  The others look whether it can be, say where to, and
tell the client what has become of it.  `perform` alone is the peer-to-peer form.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from xml.etree.ElementTree import ParseError, canonicalize

from pyvz.errors import VZError
from pyvz.gateway import domain, failure, moving
from pyvz.gateway.calls_domain import description
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.moving import Cookie, Wish
from pyvz.gateway.xdr import Typed
from pyvz.migration.request import Request
from pyvz.model.task import Progress
from pyvz.operations import migrate

Key = dict[str, Any]

VERB: Final = "migrate"


async def domain_migrate_begin3_params(call: Call, arguments: dict[str, Any]) -> Values:
    """On the giving node: whether it can go; what it is."""
    return await call.office.query(partial(_begin, call, **arguments))


async def domain_migrate_prepare3_params(call: Call, arguments: dict[str, Any]) -> Values:
    """On the taking node: whether it is free for it, and by which URI this node is found."""
    return await call.office.query(partial(_prepare, call, **arguments))


async def domain_migrate_perform3_params(call: Call, arguments: dict[str, Any]) -> Values:
    """On the giving node: move it.  dconnuri: the other node, in the peer-to-peer form."""
    found, request = await call.office.query(partial(_plan, call, **arguments))
    report = await call.office.work(
        VERB,
        found.env.name,
        lambda progress: _move(call, found, request, progress),
        call.client.peer,
    )
    if arguments["dconnuri"] is not None:
        return {"cookie_out": b""}  # the client of this form takes none
    return {"cookie_out": Cookie(report.uuid, report.name).to_bytes()}


async def domain_migrate_finish3_params(call: Call, arguments: dict[str, Any]) -> Values:
    """On the taking node: the domain that has come."""
    return await call.office.query(partial(_finish, call, **arguments))


async def domain_migrate_confirm3_params(_call: Call, _arguments: dict[str, Any]) -> None:
    """On the giving node: it knows already, from the other node itself."""


def _begin(call: Call, *, dom: Key, params: Sequence[Typed], flags: int) -> Values:
    found, asked = _looked_at(call, dom, params, flags)
    if asked.uri is not None:
        moving.request(asked, None, flags)
    cookie = Cookie(found.env.uuid, asked.name or found.env.name)
    return {"cookie_out": cookie.to_bytes(), "xml": _described(call, found)}


def _prepare(call: Call, *, params: Sequence[Typed], cookie_in: bytes, flags: int) -> Values:
    _ = flags
    asked, cookie = moving.wish(params), Cookie.parse(cookie_in)
    if cookie is None:
        raise Failure(failure.INVALID_ARGUMENT, "The other node is not one of pyvz: no cookie")
    for ref in (cookie.uuid, asked.name or cookie.name):
        if _is_known(call, ref):
            raise Failure(failure.FAILED, f"There is a domain '{ref}' on the other node already")
    return {"cookie_out": cookie_in, "uri_out": asked.uri or moving.target(socket.gethostname())}


def _plan(
    call: Call, *, dom: Key, dconnuri: str | None, params: Sequence[Typed], flags: int, **_: object
) -> tuple[Domain, Request]:
    found, asked = _looked_at(call, dom, params, flags)
    return found, moving.request(asked, dconnuri, flags)


def _move(call: Call, found: Domain, request: Request, progress: Progress) -> Any:  # noqa: ANN401
    report = migrate.migrate(call.office.node, found.env.uuid, request, progress)
    if found.running and not report.started:
        raise Failure(
            failure.FAILED,
            f"{report.name} is on {report.host} now, but does not run there: {report.problem}",
        )
    return report


def _finish(
    call: Call, *, params: Sequence[Typed], cookie_in: bytes, flags: int, cancelled: int
) -> Values:
    _ = flags
    moving.wish(params)
    cookie = Cookie.parse(cookie_in)
    if cancelled or cookie is None:
        raise Failure(failure.MIGRATE_FINISHED, "The migration was given up: nothing has come")
    return {"dom": domain.lookup(call.office.node, cookie.uuid).key, "cookie_out": b""}


def _looked_at(call: Call, dom: Key, params: Sequence[Typed], flags: int) -> tuple[Domain, Wish]:
    """Return the domain and what is wanted of it; raises Failure."""
    asked, found = moving.wish(params), domain.find(call.office.node, dom)
    moving.check(flags)
    if asked.xml is not None and not _same(asked.xml, _described(call, found)):
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            "Another description for the other node (--xml) is not supported:"
            " change the domain before or after the migration",
        )
    return found, asked


def _described(call: Call, found: Domain) -> str:
    return description(call.office.node, found, live=False)


def _same(one: str, other: str) -> bool:
    try:
        return canonicalize(one, strip_text=True) == canonicalize(other, strip_text=True)
    except ParseError as error:
        raise Failure(failure.XML, f"The description is no XML: {error}") from error


def _is_known(call: Call, ref: str) -> bool:
    try:
        call.office.node.registry.resolve(ref)
    except VZError:
        return False
    return True
