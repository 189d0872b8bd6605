"""The interface io.pyvz.Memory: the memory manager (vcmmd).

No `from __future__ import annotations` here: see replies.py.
"""

from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from asyncvarlink import VarlinkInterface, varlinkmethod

from pyvz.daemon.calls import Api, acting
from pyvz.daemon.replies import Empty
from pyvz.daemon.tasks import Work
from pyvz.memory.policy import base as policies
from pyvz.model.memory import Reservation
from pyvz.operations import vcmmd
from pyvz.operations.node import Node
from pyvz.operations.vcmmd import Figures


@dataclass(frozen=True)
class VeConfig:
    """Figures of a VE: bytes, 9223372036854775807 for no limit; null: as it is."""

    guarantee: int | None
    limit: int | None
    swap: int | None
    cache: int | None
    cpunum: int | None


class VeReply(TypedDict):
    """A registered VE; sizes in bytes, 9223372036854775807 for no limit.

    type: CT, VM, VM_LIN, VM_WIN or SRVC.  auto: the policy decides the guarantee.
    """

    name: str
    type: str
    active: bool
    guarantee: int
    limit: int
    swap: int
    cache: int
    cpunum: int
    auto: bool


class VesReply(TypedDict):
    """VEs by name."""

    ves: list[VeReply]


class PolicyReply(TypedDict):
    """runtime: the policy in force.  file: what vcmmd.conf says.  all: those that there are."""

    runtime: str
    file: str
    all: list[str]


class Memory(Api, VarlinkInterface, name="io.pyvz.Memory"):
    """Who is promised how much memory, and the policy that moves it."""

    @varlinkmethod
    async def List(self) -> VesReply:
        """Return the registered VEs."""
        return {"ves": [_ve(each) for each in await self.query(vcmmd.ves)]}

    @acting(Empty)
    def Register(self, node: Node, *, name: str, type: str, config: VeConfig) -> Work:
        """Make a VE known and set its guarantee aside.  Environments are registered by a start."""
        figures = Figures(**asdict(config))
        return Work("memory-register", name, lambda _: vcmmd.register(node, name, type, figures))

    @acting(Empty)
    def Activate(self, node: Node, *, name: str) -> Work:
        """Manage a registered VE from now on."""
        return Work("memory-activate", name, lambda _: vcmmd.activate(node, name))

    @acting(Empty)
    def Update(self, node: Node, *, name: str, config: VeConfig) -> Work:
        """Change the figures of an active VE, until it stops; null: as it is."""
        figures = Figures(**asdict(config))
        return Work("memory-update", name, lambda _: vcmmd.update(node, name, figures))

    @acting(Empty)
    def Deactivate(self, node: Node, *, name: str) -> Work:
        """Manage a VE no more; what was promised stays set aside."""
        watch = self.services.memory
        return Work("memory-deactivate", name, lambda _: vcmmd.deactivate(node, watch, name))

    @acting(Empty)
    def Unregister(self, node: Node, *, name: str) -> Work:
        """Forget a VE."""
        watch = self.services.memory
        return Work("memory-unregister", name, lambda _: vcmmd.unregister(node, watch, name))

    @varlinkmethod
    async def Policy(self) -> PolicyReply:
        """Return the policy in force, that of the file, and all there are."""
        conf = self.node.memory.conf()
        return {
            "runtime": self.services.memory.policy.name,
            "file": conf.policy,
            "all": list(policies.names()),
        }

    @acting(Empty)
    def SetPolicy(self, node: Node, *, policy: str) -> Work:
        """Change the policy, also in vcmmd.conf.  No limit is touched."""
        del node
        watch = self.services.memory
        return Work("memory-policy", policy, lambda _: watch.switch(policy))

    @varlinkmethod(return_parameter="stats", allow_foreign=True)
    async def Stats(self, *, name: str) -> dict[str, int]:
        """Return the statistics of a VE; -1 for what nobody counts."""
        found: dict[str, int] = await self.query(vcmmd.stats, self.services.memory, name)
        return found

    @varlinkmethod(return_parameter="free", allow_foreign=True)
    async def Free(self) -> dict[str, int]:
        """Return the memory of the node: bytes, by the names of vcmmdctl free."""
        found: dict[str, int] = await self.query(vcmmd.free)
        return found

    @varlinkmethod(return_parameter="config", allow_foreign=True)
    async def Config(self, *, full: bool = False) -> object:
        """Return vcmmd.conf; full: with what counts where it says nothing."""
        found: Any = await self.query(vcmmd.config, full=full)
        return found

    @varlinkmethod(return_parameter="counts", allow_foreign=True)
    async def PolicyCounts(self) -> dict[str, int]:
        """Return what the memory manager has done since the daemon began."""
        return self.services.memory.counts

    @acting(Empty)
    def SetLogLevel(self, node: Node, *, level: str) -> Work:
        """Log messages of the memory manager from this level on."""
        del node
        return Work("memory-log-level", level, lambda _: vcmmd.set_log_level(level))


def _ve(entry: Reservation) -> VeReply:
    return {
        "name": entry.name,
        "type": str(entry.type),
        "active": entry.active,
        "guarantee": entry.guarantee,
        "limit": entry.limit,
        "swap": entry.swap,
        "cache": entry.cache,
        "cpunum": entry.cpunum,
        "auto": entry.auto,
    }
