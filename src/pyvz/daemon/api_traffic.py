"""The interface io.pyvz.Traffic: what containers send and receive, by class of traffic.

No `from __future__ import annotations` here: see replies.py.
"""

from typing import TypedDict

from asyncvarlink import VarlinkInterface, varlinkmethod

from pyvz.daemon.calls import Api, acting
from pyvz.daemon.replies import Empty
from pyvz.daemon.tasks import Work
from pyvz.operations import traffic, trafficsettings
from pyvz.operations.node import Node
from pyvz.operations.trafficsettings import Change


class TrafficRow(TypedDict):
    """What one class of a container has moved: bytes and packets in (to it) and out."""

    uuid: str
    name: str
    number: int
    bytes_in: int
    packets_in: int
    bytes_out: int
    packets_out: int


class TrafficRows(TypedDict):
    """Rows by container and class."""

    rows: list[TrafficRow]


class ClassValue(TypedDict):
    """A class of traffic and one of its networks."""

    number: int
    network: str


class SettingsReply(TypedDict):
    """Shaping of the node; the lists are as vz.conf has them."""

    shaping: bool
    bandwidth: str
    totalrate: str
    rate: str
    classes: list[ClassValue]


class Names(TypedDict):
    """Names of the containers that run with it."""

    environments: list[str]


class Traffic(Api, VarlinkInterface, name="io.pyvz.Traffic"):
    """Accounting and shaping of network traffic."""

    @varlinkmethod
    async def List(self, *, refs: list[str] | None = None, versions: str = "46") -> TrafficRows:
        """Return the traffic of the containers in REFS, or of all; versions: "4", "6" or "46"."""
        rows = await self.query(traffic.rows, refs or [], versions=versions)
        return {
            "rows": [
                {
                    "uuid": env.uuid,
                    "name": env.name,
                    "number": each.number,
                    "bytes_in": each.bytes_in,
                    "packets_in": each.packets_in,
                    "bytes_out": each.bytes_out,
                    "packets_out": each.packets_out,
                }
                for env, each in rows
            ]
        }

    @varlinkmethod
    async def Settings(self) -> SettingsReply:
        """Return the node's shaping and classes."""
        found = await self.query(trafficsettings.settings)
        return {
            "shaping": found.shaping,
            "bandwidth": found.bandwidth,
            "totalrate": found.totalrate,
            "rate": found.rate,
            "classes": [{"number": x.number, "network": x.network} for x in found.classes],
        }

    @acting(Empty)
    def Reset(self, node: Node, *, ref: str) -> Work:
        """Count a container's traffic from zero again."""
        return Work("traffic-reset", ref, lambda _: traffic.reset_counters(node, ref))

    @acting(Names)
    def Restart(self, node: Node) -> Work:
        """Put rates and classes in force as the files of the node have them now."""
        return Work(
            "tc-restart",
            "",
            lambda _: traffic.restart(node),
            lambda names: {"environments": list(names)},
        )

    @acting(Names)
    def Set(  # noqa: PLR0913  one call, as `prlsrvctl set` has it
        self,
        node: Node,
        *,
        shaping: bool | None = None,
        add_classes: list[str] | None = None,
        del_classes: list[str] | None = None,
        add_entries: list[str] | None = None,
        del_entries: list[str] | None = None,
        add_bandwidths: list[str] | None = None,
        del_bandwidths: list[str] | None = None,
    ) -> Work:
        """Change shaping (CLASS:CIDR; DEV:CLASS:TOTALRATE:RATE; DEV:KBITS) and put it in force."""
        wanted = Change(
            shaping,
            (add_classes or (), del_classes or ()),
            (add_entries or (), del_entries or ()),
            (add_bandwidths or (), del_bandwidths or ()),
        )
        return Work(
            "set",
            "",
            lambda _: trafficsettings.change(node, wanted),
            lambda names: {"environments": list(names)},
        )
