"""Events of virtual networks and storage pools, as `events` has those of domains.

Clients stop asking for a kind of object once they may wait for its events; so the kinds of which we
tell nothing (node devices, secrets) are ones that never change here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from pyvz.gateway import poolview
from pyvz.gateway.connection import Call, Values
from pyvz.model import event as names
from pyvz.model.event import Event

if TYPE_CHECKING:
    from pyvz.gateway.connection import Client

NETWORK: Final = "network"
POOL: Final = "storage pool"
NODE_DEVICE: Final = "node device"
SECRETS: Final = "secrets"

LIFECYCLE, REFRESH = 0, 1  # event ids

# name on the bus -> event of the life cycle (virNetworkEventLifecycleType)
NETWORKS: Final = {
    names.NET_ADD: (0, 2), names.NET_SET: (0,), names.NET_DELETE: (3, 1), names.NET_UP: (2,),
    names.NET_DOWN: (3,),
}  # fmt: skip
# the same of pools (virStoragePoolEventLifecycleType)
POOLS: Final = {
    names.POOL_ADD: (0,), names.POOL_SET: (0,), names.POOL_DELETE: (1,), names.POOL_START: (2,),
    names.POOL_STOP: (3,),
}  # fmt: skip


def hand_on(event: Event, clients: Collection[Client]) -> None:
    """Tell the clients of an event of the node, when it is about a network or a pool."""
    name, uuid = str(event.data.get("name", "")), str(event.data.get("uuid", ""))
    for number in NETWORKS.get(event.name, ()):
        message = {"net": {"name": name, "uuid": uuid}, "event": number, "detail": 0}
        for client in tuple(clients):
            client.callbacks.tell(NETWORK, LIFECYCLE, uuid, "network_event_lifecycle", message)
    if event.name not in {*POOLS, names.POOL_REFRESH}:
        return
    key = {"name": name, "uuid": uuid or poolview.uuid_of(name, str(event.data.get("path", "")))}
    for client in tuple(clients):
        _tell_of_pool(client, event.name, key)


def _tell_of_pool(client: Client, name: str, key: dict[str, str]) -> None:
    tell, uuid = client.callbacks.tell, key["uuid"]
    for number in POOLS.get(name, ()):
        message = {"pool": key, "event": number, "detail": 0}
        tell(POOL, LIFECYCLE, uuid, "storage_pool_event_lifecycle", message)
    if name == names.POOL_REFRESH:
        tell(POOL, REFRESH, uuid, "storage_pool_event_refresh", {"pool": key})


def _added(call: Call, kind: str, event: int, about: dict[str, str] | None) -> Values:
    uuid = about["uuid"] if about is not None else None
    return {"callbackID": call.client.callbacks.add(kind, event, uuid)}


async def connect_network_event_register_any(call: Call, arguments: Values) -> Values:
    """Tell the client of networks from now on."""
    return _added(call, NETWORK, arguments["eventID"], arguments["net"])


async def connect_network_event_deregister_any(call: Call, arguments: Values) -> None:
    """Tell it no more."""
    call.client.callbacks.remove(NETWORK, arguments["callbackID"])


async def connect_storage_pool_event_register_any(call: Call, arguments: Values) -> Values:
    """Tell the client of pools from now on."""
    return _added(call, POOL, arguments["eventID"], arguments["pool"])


async def connect_storage_pool_event_deregister_any(call: Call, arguments: Values) -> None:
    """Tell it no more."""
    call.client.callbacks.remove(POOL, arguments["callbackID"])


async def connect_node_device_event_register_any(call: Call, arguments: Values) -> Values:
    """Note that the client wants to hear of node devices, of which there is no news."""
    return _added(call, NODE_DEVICE, arguments["eventID"], None)


async def connect_node_device_event_deregister_any(call: Call, arguments: Values) -> None:
    """See above."""
    call.client.callbacks.remove(NODE_DEVICE, arguments["callbackID"])


async def connect_secret_event_register_any(call: Call, arguments: Values) -> Values:
    """Note that the client wants to hear of secrets, of which there are none."""
    return _added(call, SECRETS, arguments["eventID"], None)


async def connect_secret_event_deregister_any(call: Call, arguments: Values) -> None:
    """See above."""
    call.client.callbacks.remove(SECRETS, arguments["callbackID"])
