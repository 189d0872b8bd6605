"""The interface io.pyvz.Pool: storage pools, by name.

No `from __future__ import annotations` here: see replies.py.
"""

from typing import Any, TypedDict

from asyncvarlink import VarlinkInterface, varlinkmethod

from pyvz.daemon.calls import Api, acting
from pyvz.daemon.replies import Empty
from pyvz.daemon.tasks import Work
from pyvz.operations import storagepool
from pyvz.operations.node import Node
from pyvz.store.pools import parse_options


class PoolReply(TypedDict):
    """A pool; sizes in bytes.  problem: why it cannot be used, or empty.
    builtin: it stands in no file of its own, but in vz.conf.  containers: how many are in it.
    volumes: of each (uuid, name, driver, registered), as lists: there may be thousands.
    """

    name: str
    driver: str
    path: str
    options: dict[str, str]
    default: bool
    builtin: bool
    problem: str
    fstype: str
    total: int
    free: int
    floor: int
    capabilities: list[str]
    containers: int
    volumes: list[Any]


class PoolsReply(TypedDict):
    """Pools by name."""

    pools: list[PoolReply]


class Pool(Api, VarlinkInterface, name="io.pyvz.Pool"):
    """Places of the node in which containers are made, each with its storage driver."""

    @varlinkmethod(allow_foreign=True)
    async def List(self, *, names: list[str] | None = None, volumes: bool = True) -> PoolsReply:
        """Return the pools in NAMES, or all; with the containers in them, or only how many."""
        if names is None:
            found = await self.query(storagepool.states)
        else:
            found = [await self.query(storagepool.state, name) for name in names]
        return {"pools": [_reply(each, volumes=volumes) for each in found]}

    @acting(Empty)
    def Add(
        self,
        node: Node,
        *,
        name: str,
        driver: str,
        path: str,
        options: str = "",
        default: bool = False,
    ) -> Work:
        """Make the existing directory PATH a pool.  options: name=value,..."""
        return Work(
            "pool-add",
            name,
            lambda _: storagepool.add(
                node,
                name,
                driver=driver,
                path=path,
                options=parse_options(options),
                default=default,
            ),
        )

    @acting(Empty)
    def Set(
        self,
        node: Node,
        *,
        name: str,
        options: str = "",
        driver: str | None = None,
        default: bool | None = None,
    ) -> Work:
        """Change a pool for the containers to come.  options: name=value,...; name= takes away."""
        return Work(
            "pool-set",
            name,
            lambda _: storagepool.change(
                node, name, options=parse_options(options), driver=driver, default=default
            ),
        )

    @acting(Empty)
    def Delete(self, node: Node, *, name: str) -> Work:
        """Give up a pool in which no container is; its directory stays."""
        return Work("pool-delete", name, lambda _: storagepool.delete(node, name))


def _reply(state: storagepool.PoolState, *, volumes: bool) -> PoolReply:
    pool = state.pool
    return {
        "name": pool.name,
        "driver": pool.driver,
        "path": str(pool.path),
        "options": dict(pool.options),
        "default": pool.default,
        "builtin": pool.builtin,
        "problem": state.problem,
        "fstype": state.fstype,
        "total": state.total,
        "free": state.free,
        "floor": state.floor,
        "capabilities": list(state.capabilities),
        "containers": len(state.volumes),
        "volumes": [list(each) for each in state.volumes] if volumes else [],
    }
