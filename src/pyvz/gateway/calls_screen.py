"""The screen of a virtual machine as a stream of one picture."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from pyvz.gateway import domain, failure
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.gateway.streams import Flow
from pyvz.operations import machineguest

CHUNK: Final = 64 << 10  # bytes of one packet


class Picture(Flow):
    """A picture for the client."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def data(self) -> AsyncIterator[bytes]:
        """Yield the picture."""
        for start in range(0, len(self._content), CHUNK):
            yield self._content[start : start + CHUNK]

    async def close(self) -> None:
        """Forget the picture."""
        self._content = b""


async def domain_screenshot(call: Call, arguments: dict[str, Any]) -> Values:
    """Take a picture of the only screen (0), as PNG."""
    node = call.office.node
    if arguments["screen"]:
        raise Failure(failure.INVALID_ARGUMENT, "A virtual machine has one screen, number 0")
    found = await call.office.query(lambda: domain.find_running(node, arguments["dom"]))
    if not domain.is_machine(found):
        raise Failure(failure.OPERATION_UNSUPPORTED, "A container has no screen")
    content = await call.office.query(lambda: machineguest.capture(node, found.env.uuid))
    call.client.streams.open(call.request, Picture(content))
    return {"mime": "image/png"}
