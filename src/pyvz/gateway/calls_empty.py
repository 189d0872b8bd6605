"""Kinds of objects that this node has none of: clients list them, and are content with nothing."""

from __future__ import annotations

from typing import Any

from pyvz.gateway import failure
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure

Arguments = dict[str, Any]


async def connect_list_all_secrets(_call: Call, _arguments: Arguments) -> Values:
    """Secrets are not kept here."""
    return {"secrets": [], "ret": 0}


async def secret_lookup_by_uuid(_call: Call, arguments: Arguments) -> Values:
    """See above."""
    raise Failure(failure.NO_SECRET, f"There is no secret {arguments['uuid']}")


async def connect_list_all_nwfilters(_call: Call, _arguments: Arguments) -> Values:
    """Filters belong to interfaces here (`prlctl set --fw`)."""
    return {"filters": [], "ret": 0}


async def nwfilter_lookup_by_name(_call: Call, arguments: Arguments) -> Values:
    """See above."""
    raise Failure(failure.NO_NWFILTER, f"There is no network filter '{arguments['name']}'")


async def nwfilter_define_xml(_call: Call, _arguments: Arguments) -> Values:
    """See above."""
    raise Failure(
        failure.OPERATION_UNSUPPORTED,
        "Filters belong to environments: prlctl set ID --fw, and nftables of the node",
    )


nwfilter_binding_create_xml = nwfilter_define_xml


async def secret_define_xml(_call: Call, _arguments: Arguments) -> Values:
    """See above."""
    raise Failure(
        failure.OPERATION_UNSUPPORTED,
        "Secrets are not kept for libvirt's clients: disks are encrypted with keys of the node"
        " (/etc/vz/keys), prlctl set ID --device-add hdd --encryption-keyid KEY",
    )


async def connect_list_all_nwfilter_bindings(_call: Call, _arguments: Arguments) -> Values:
    """See above."""
    return {"bindings": [], "ret": 0}


async def network_list_all_ports(_call: Call, _arguments: Arguments) -> Values:
    """Ports are not shown."""
    return {"ports": [], "ret": 0}


async def domain_get_iothread_info(_call: Call, _arguments: Arguments) -> Values:
    """QEMU's disks have no threads of their own."""
    return {"info": [], "ret": 0}


async def domain_get_disk_errors(_call: Call, _arguments: Arguments) -> Values:
    """One whose disk fails is halted, and the event says so."""
    return {"errors": [], "nerrors": 0}


async def connect_num_of_secrets(_call: Call, _arguments: Arguments) -> Values:
    """What older clients ask first: there are none."""
    return {"num": 0}


async def connect_list_secrets(_call: Call, _arguments: Arguments) -> Values:
    """See above."""
    return {"uuids": []}


async def connect_list_nwfilters(_call: Call, _arguments: Arguments) -> Values:
    """See above."""
    return {"names": []}


connect_num_of_nwfilters = connect_num_of_secrets
