"""A read-only connection, call by call: nothing that changes something reaches its handler."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Mapping
from typing import Any

import pytest

from pyvz.gateway import failure, frame, handlers, procedures
from pyvz.gateway.connection import Call, Client, Handlers
from pyvz.gateway.frame import REMOTE, VERSION, Frame, Status, Type
from pyvz.gateway.office import Peer
from pyvz.gateway.procedures import EVENT, WRITE
from pyvz.gateway.xdr import BadData, codec, unpack

CHANGING = sorted(each.number for each in procedures.by_number().values() if each.right == WRITE)
OTHERS = sorted(
    {0, 9999, *(n for n, each in procedures.by_number().items() if each.right == EVENT)}
)


class Office:
    """A daemon in which nothing may be asked or done."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a refused call has reached {name} of the daemon")


async def reached(call: Call, arguments: dict[str, Any]) -> Mapping[str, Any] | None:
    raise AssertionError(f"{call.procedure.name} was reached with {arguments}")


async def next_frame(stream: asyncio.StreamReader) -> Frame:
    cutter = frame.Cutter()
    while data := await stream.read(1 << 16):
        for found in cutter.feed(data):
            return found
    raise EOFError


async def answers(numbers: list[int], payload: bytes, *, readonly: bool) -> list[dict[str, Any]]:
    """Return the errors with which calls are answered, after an open connection's manner."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    every = Handlers(dict.fromkeys(procedures.by_name(), reached), {})
    client = Client(reader, writer, Peer(1000, 1), Office(), every, readonly=readonly)
    client.opened = True
    serving = asyncio.create_task(client.serve())
    back, out = await asyncio.open_unix_connection(sock=ours)
    found = []
    try:
        for number in numbers:
            request = Frame(REMOTE, VERSION, number, Type.CALL, 7, Status.OK, payload)
            out.write(request.to_bytes())
            async with asyncio.timeout(30):
                answer = await next_frame(back)
            assert (answer.type, answer.serial, answer.procedure) == (Type.REPLY, 7, number)
            assert answer.status is Status.ERROR
            found.append(unpack(codec("error"), answer.payload))
    finally:
        out.close()
        await out.wait_closed()
        await serving
    return found


@pytest.mark.parametrize("seed", range(4))
def test_whatever_changes_something_is_refused(seed: int) -> None:
    payload = random.Random(seed).randbytes(seed * 40)
    found = asyncio.run(answers(CHANGING, payload, readonly=True))
    assert len(CHANGING) > 90
    assert {each["code"] for each in found} == {failure.DENIED}


def test_a_writer_with_wrong_arguments_reaches_nothing_either() -> None:
    with_arguments = [n for n in CHANGING if not _takes(n, b"\xff")]
    found = asyncio.run(answers(with_arguments, b"\xff", readonly=False))
    assert {each["code"] for each in found} == {failure.INVALID_ARGUMENT}


def _takes(number: int, payload: bytes) -> bool:
    """Whether these bytes are arguments of a procedure."""
    try:
        unpack(procedures.by_number()[number].arguments, payload)
    except BadData:
        return False
    return True


def test_events_and_unknown_numbers_cannot_be_called() -> None:
    found = asyncio.run(answers(OTHERS, b"", readonly=False))
    assert {each["code"] for each in found} == {failure.NO_SUPPORT}


def test_every_handler_belongs_to_a_row() -> None:
    made = handlers.handlers().by_name
    assert made.keys() <= procedures.by_name().keys()
    assert not [name for name in made if procedures.by_name()[name].right == EVENT]
