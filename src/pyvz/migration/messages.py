"""The messages of a migration: which there are, what each has to hold.  Values only.

Every message is a JSON object with "is", its kind.  A field's type is one of `str int float bool
list dict`, or the same with a question mark: then it may be null.  What a message has beyond its
fields is ignored (a newer version says more), what it lacks or has of another type is a violation.
A call is answered by "done" (its `result`), or "failed"; "progress" may come before.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pyvz import errors
from pyvz.errors import ProtocolError, VZError

Message = dict[str, Any]

VERSION: Final = 2
_LONGEST: Final = 1 << 20  # characters of a text

_SCHEMAS: Final[dict[str, dict[str, str]]] = {
    # both ways, first of all
    "hello": {"version": "int", "program": "str", "node": "str", "host": "str"},
    # answers
    "done": {"result": "dict"},
    "failed": {"error": "str", "message": "str", "details": "str", "hint": "str"},
    "progress": {"stage": "str", "done": "int?", "total": "int?", "unit": "str"},
    # what the side asks that has the environment
    "check": {"id": "str", "offer": "dict"},
    "reserve": {},
    "disk": {"name": "str", "form": "str", "driver": "str", "size": "int?", "channel": "int"},
    "disks-done": {},
    "why": {},
    "memory": {"round": "int", "size": "int", "channel": "int"},
    "ready": {"frame": "str", "memory": "int", "channel": "int", "pages": "int?"},
    "again": {},
    "pages": {},
    "prepare": {"frame": "str", "memory": "int"},
    "stream": {"name": "str", "channel": "int"},
    "restore": {},
    "commit": {"start": "bool"},
    "abort": {},
    # what the side asks that dialled
    "pull": {"ref": "str", "options": "dict"},
    "outcome": {"id": "str"},
    "settled": {"id": "str"},
    "decided": {"id": "str", "outcome": "str"},
    "bye": {},
}
_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "list": list,
    "dict": dict,
}


def parse(data: bytes) -> Message:
    """Return the message in DATA; raises ProtocolError."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("The other node sent a message that cannot be read") from error
    kind = str(message.get("is"))[:40] if isinstance(message, dict) else "no object"
    if not isinstance(message, dict) or kind not in _SCHEMAS or message["is"] != kind:
        raise ProtocolError(f"The other node sent an unknown message ({kind})")
    check(message, _SCHEMAS[message["is"]], str(message["is"]))
    return message


def check(value: dict[str, Any], schema: dict[str, str], what: str) -> None:
    """Raise ProtocolError unless VALUE has the fields of SCHEMA, of their types."""
    for field, wanted in schema.items():
        found = value.get(field)
        if found is None and wanted.endswith("?"):
            continue
        kind = wanted.rstrip("?")
        right = isinstance(found, _TYPES[kind])
        if kind in {"int", "float"} and isinstance(found, bool):
            right = False
        if not right or (isinstance(found, str) and len(found) > _LONGEST):
            raise ProtocolError(f"The other node sent '{what}' with a wrong {field}")


def make(kind: str, **fields: Any) -> Message:  # noqa: ANN401
    """Return a message of that kind, checked as the other side will."""
    message: Message = {"is": kind, **fields}
    check(message, _SCHEMAS[kind], kind)
    return message


def failed(error: VZError) -> Message:
    """Return the message that carries ERROR."""
    return make(
        "failed",
        error=type(error).__name__,
        message=error.message[:_LONGEST],
        details=error.details[:_LONGEST],
        hint=error.hint[:_LONGEST],
    )


def error_of(message: Message, host: str) -> VZError:
    """Return the error that a "failed" message carries, told of its node."""
    kind = getattr(errors, message["error"], VZError)
    if not (isinstance(kind, type) and issubclass(kind, VZError)):
        kind = VZError
    return kind(f"{host}: {message['message']}", details=message["details"], hint=message["hint"])
