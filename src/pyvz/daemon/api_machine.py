"""The interface io.pyvz.Machine: what only virtual machines can do.

No `from __future__ import annotations` here: see replies.py.
"""

import base64
from typing import TypedDict

from asyncvarlink import VarlinkInterface, varlinkmethod

from pyvz.daemon.calls import Api, acting
from pyvz.daemon.replies import Empty
from pyvz.daemon.tasks import Work
from pyvz.operations import machineguest
from pyvz.operations.node import Node


class Picture(TypedDict):
    """A PNG image in base64."""

    png: str


class Machine(Api, VarlinkInterface, name="io.pyvz.Machine"):
    """Virtual machines; what they share with containers is in io.pyvz.Environment."""

    @varlinkmethod
    async def Capture(self, *, ref: str) -> Picture:
        """Return a picture of its screen."""
        png: bytes = await self.query(machineguest.capture, ref)
        return {"png": base64.b64encode(png).decode()}

    @acting(Empty)
    def SendKey(
        self,
        node: Node,
        *,
        ref: str,
        key: str = "",
        event: str | None = None,
        scancode: int | None = None,
    ) -> Work:
        """Press and release a key, or (event: press, release) only one of it.

        key: ret, a, f2, ctrl-alt-delete, ...; scancode: a number of the PC keyboard instead.
        """
        return Work(
            "send-key", ref, lambda _: machineguest.send_key(node, ref, key, event, scancode)
        )
