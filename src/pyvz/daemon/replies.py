"""Types of the API's replies, and the errors as Varlink errors.

No `from __future__ import annotations` here: asyncvarlink derives the published interface
description from the annotations.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

from asyncvarlink import (
    FileDescriptor,
    GenericVarlinkErrorReply,
    TypedVarlinkErrorReply,
    VarlinkInterface,
)

from pyvz import errors
from pyvz.errors import VZError

ERROR_INTERFACE = "io.pyvz.Error"


@dataclass(frozen=True)
class Progress:
    """How far a call is: a named stage, and where it is known an amount."""

    stage: str
    done: int | None
    total: int | None
    unit: str


@dataclass(frozen=True)
class Option:
    """One option as the user gave it, in the words of the dialect (prlctl or vzctl)."""

    name: str
    value: str | None


@dataclass(frozen=True)
class Terminal:
    """A terminal to make for a session."""

    rows: int
    cols: int
    term: str | None


class Empty(TypedDict):
    """A result that says nothing but that it is done."""


class Uuid(TypedDict):
    """The environment that was made."""

    uuid: str


class SessionReply(TypedDict):
    """A session that has begun; descriptors[i] is the descriptor of streams[i]."""

    id: str
    streams: list[str]
    descriptors: list[FileDescriptor]


class ExitReply(TypedDict):
    """How the program ended: its exit status, or 128 + the signal that killed it."""

    exit_status: int


class ExecReply(TypedDict, total=False):
    """First `session`, at the end `result`."""

    session: SessionReply
    result: ExitReply


class _ErrorParameters(TypedDict):
    message: str
    details: str
    hint: str


def error_types() -> dict[type[VZError], type[TypedVarlinkErrorReply]]:
    """Return the Varlink error of every class in `pyvz.errors`, made from its name and text."""
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, VZError)
    ]
    return {kind: _error_type(kind) for kind in sorted(kinds, key=lambda kind: kind.__name__)}


def _error_type(kind: type[VZError]) -> type[TypedVarlinkErrorReply]:
    body: dict[str, Any] = {
        "name": f"{ERROR_INTERFACE}.{kind.__name__}",
        "__doc__": kind.__doc__,
        "__annotations__": {"parameters": _ErrorParameters},
    }
    return type(kind.__name__, (TypedVarlinkErrorReply,), body)


ERRORS = error_types()


class ErrorInterface(VarlinkInterface, name=ERROR_INTERFACE):
    """The errors of every io.pyvz interface.

    message: one line, what was asked and why it failed; details: further lines, may be empty;
    hint: what can be done about it, may be empty.
    """

    errors = tuple(ERRORS.values())


def error_reply(error: VZError) -> GenericVarlinkErrorReply:
    """Return ERROR as it goes over the wire."""
    kind = next((kind for kind in type(error).__mro__ if kind in ERRORS), VZError)
    return GenericVarlinkErrorReply(
        ERRORS[kind].name,
        {"message": error.message, "details": error.details, "hint": error.hint},
    )
