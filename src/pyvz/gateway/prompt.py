"""Questions that are answered from memory, in the event loop, where nothing has changed since the
last time (operations/roster.py); all others go to a thread, which reads and so makes them known.

    of_domain       FUNCTION(found, **arguments) needs only what is known of a domain
    first(QUICK)    QUICK(call, **arguments) has the answer of FUNCTION in memory, or says None
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Final

from pyvz.errors import EnvironmentNotFound
from pyvz.gateway import domain
from pyvz.gateway.connection import Call, Values, packed
from pyvz.gateway.domain import Domain
from pyvz.gateway.xdr import Packed

Answer = Values | Packed
Question = Callable[..., Answer]
Quick = Callable[..., Answer | None]

ATTRIBUTE: Final = "at_once"
MOST: Final = 16  # answers kept with the same values


def of_domain(function: Callable[..., Values]) -> Question:
    """Make a question of FUNCTION, which gets the domain, and looks at nothing else."""

    def quick(call: Call, *, dom: Mapping[str, Any], **arguments: Any) -> Values | None:  # noqa: ANN401
        found = known(call, dom["uuid"])
        return None if found is None else function(found, **arguments)

    @wraps(function)
    def ask(call: Call, *, dom: Mapping[str, Any], **arguments: Any) -> Values:  # noqa: ANN401
        return function(read(call, dom), **arguments)

    return first(quick)(ask)


def first(quick: Quick) -> Callable[[Question], Question]:
    """Mark a question as one that QUICK may know the answer of."""

    def marked(function: Question) -> Question:
        setattr(function, ATTRIBUTE, quick)
        return function

    return marked


def known(call: Call, uuid: str) -> Domain | None:
    """Return a domain from memory, None when it has to be read."""
    found = call.office.roster.known(uuid)
    return None if found is None else domain.seen(found)


def read(call: Call, dom: Mapping[str, Any]) -> Domain:
    """Return a domain, read where it is not known (in a thread); raises Failure (42)."""
    try:
        return domain.seen(call.office.roster.find(dom["uuid"]))
    except EnvironmentNotFound as error:
        raise domain.missing(error) from error


def everyone(call: Call) -> list[Domain]:
    """Return every domain, read where they are not known (in a thread)."""
    return [domain.seen(each) for each in call.office.roster.read().rows]


def packed_answer(call: Call, values: Values) -> Packed:
    """Return the results of a call as they are sent."""
    return Packed(packed(call.procedure, values))


def remembered(memo: Mapping[Any, Any], key: object) -> Packed | None:
    """Return an answer that was kept."""
    found: Packed | None = memo.get(key)
    return found


def remember(memo: dict[Any, Any], key: object, answer: Packed) -> Packed:
    """Keep an answer with the values that it was made of; some, for clients choose the keys."""
    if len(memo) < MOST:
        memo[key] = answer
    return answer


def quick_of(function: Callable[..., Any]) -> Quick | None:
    """Return what may know the answer of a question."""
    found: Quick | None = getattr(function, ATTRIBUTE, None)
    return found
