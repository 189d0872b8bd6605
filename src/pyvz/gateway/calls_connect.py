"""Opening and closing, and what the node is: the calls that every client begins with."""

from __future__ import annotations

import os
import socket
from typing import Any, Final
from urllib.parse import urlsplit

from pyvz.gateway import failure, nodexml
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.gateway.xdr import UINT, ULLONG, Typed
from pyvz.linux.ksm import Ksm
from pyvz.units import KIB
from pyvz.vm import cpumodel

_KNOBS: Final = ("pages_to_scan", "sleep_millisecs", "merge_across_nodes")
TYPE: Final = "vz"
VERSION: Final = 7_000_001  # OpenVZ 7, as major * 1000000 + minor * 1000 + release
LIBRARY: Final = 10_000_000  # the libvirt whose calls we answer; nova wants as much
READ_ONLY: Final = 1
SCHEMES: Final = ("vz", "parallels")
# Clients that know a few drivers only (Terraform's provider) say so and name our socket.
TAKEN_FOR: Final = "qemu"

# Features that are asked for (reference/libvirt-rpc.md, 2.3); all others are 0.
FEATURES: Final = frozenset({4, 9, 10, 11, 13, 14, 15, 16})


async def auth_list(_call: Call, _arguments: dict[str, Any]) -> Values:
    """No authentication: the mode of the socket has decided who gets this far."""
    return {"types": [0]}


async def connect_supports_feature(_call: Call, arguments: dict[str, Any]) -> Values:
    """Whether we have one of libvirt's features, by number."""
    return {"supported": int(arguments["feature"] in FEATURES)}


async def connect_open(call: Call, arguments: dict[str, Any]) -> None:
    """Open the connection; the name is an URI without its transport, or nothing."""
    name, flags = arguments["name"] or "", arguments["flags"]
    if flags & ~READ_ONLY:
        raise Failure(failure.INVALID_ARGUMENT, f"Unknown flags 0x{flags & ~READ_ONLY:x}")
    parts = urlsplit(name)
    if name and (parts.scheme not in (*SCHEMES, TAKEN_FOR) or parts.path != "/system"):
        raise Failure(
            failure.INTERNAL, f"Unexpected URI '{name}': this node is reached as vz:///system"
        )
    call.client.opened = True
    call.client.uri = name or "vz:///system"
    call.client.readonly = call.client.readonly or bool(flags & READ_ONLY)


async def connect_close(call: Call, _arguments: dict[str, Any]) -> None:
    """Nothing of the client is served any more; it closes the socket itself."""
    call.client.opened = False


async def connect_register_close_callback(_call: Call, _arguments: dict[str, Any]) -> None:
    """The end of the socket tells a client as much as a message of ours could."""


async def connect_unregister_close_callback(_call: Call, _arguments: dict[str, Any]) -> None:
    """See above."""


async def connect_get_type(_call: Call, _arguments: dict[str, Any]) -> Values:
    """The name of the driver."""
    return {"type": TYPE}


async def connect_get_version(_call: Call, _arguments: dict[str, Any]) -> Values:
    """The version of the product."""
    return {"hv_ver": VERSION}


async def connect_get_lib_version(_call: Call, _arguments: dict[str, Any]) -> Values:
    """The version of libvirt; nova calls it to see whether we live."""
    return {"lib_ver": LIBRARY}


async def connect_get_uri(call: Call, _arguments: dict[str, Any]) -> Values:
    """The URI of this connection."""
    return {"uri": call.client.uri}


async def connect_get_hostname(_call: Call, _arguments: dict[str, Any]) -> Values:
    """The node's name."""
    return {"hostname": socket.gethostname()}


async def connect_is_secure(call: Call, _arguments: dict[str, Any]) -> Values:
    """Whether the connection is local or encrypted."""
    return {"secure": int(call.client.secure)}


async def connect_get_max_vcpus(_call: Call, _arguments: dict[str, Any]) -> Values:
    """The most CPUs that an environment can have here."""
    return {"max_vcpus": os.cpu_count() or 1}


def connect_get_capabilities(call: Call) -> Values:
    """What can be run here."""
    return {"capabilities": nodexml.capabilities(call.office.node)}


def connect_get_domain_capabilities(
    call: Call, *, arch: str | None, machine: str | None, virttype: str | None, **_: object
) -> Values:
    """What a domain can have here."""
    if virttype not in (None, *SCHEMES):
        raise Failure(failure.INVALID_ARGUMENT, f"This node has no domains of type '{virttype}'")
    return {"capabilities": nodexml.domain_capabilities(call.office.node, arch, machine)}


def connect_get_cpu_model_names(_call: Call, *, arch: str, need_results: int, flags: int) -> Values:
    """The processors that a machine's description may name."""
    _ = flags
    models = cpumodel.known() if arch == os.uname().machine else ()
    return {"models": list(models) if need_results else [], "ret": len(models)}


def connect_get_sysinfo(_call: Call, *, flags: int) -> Values:
    """The node's maker and firmware."""
    _ = flags
    return {"sysinfo": nodexml.sysinfo()}


def node_get_info(_call: Call) -> Values:
    """Processors and memory of the node."""
    cpus = os.cpu_count() or 1
    model = os.uname().machine.encode()[:31]
    return {
        "model": [*model, *bytes(32 - len(model))],
        "memory": nodexml.memory() // KIB,
        "cpus": cpus, "mhz": nodexml.megahertz(), "nodes": 1, "sockets": 1, "cores": cpus,
        "threads": 1,
    }  # fmt: skip


def node_get_free_memory(_call: Call) -> Values:
    """Bytes that are free."""
    return {"freeMem": nodexml.meminfo()["MemFree"]}


def node_get_security_model(_call: Call) -> Values:
    """None: neither SELinux nor AppArmor labels anything of ours."""
    return {"model": [], "doi": []}


def node_get_cells_free_memory(_call: Call, **_: object) -> Values:
    """The same, for the one cell that we show."""
    return {"cells": [nodexml.meminfo()["MemFree"]]}


def node_get_cpu_map(_call: Call, *, need_map: int, **_: object) -> Values:
    """Which processors are there."""
    cpus = os.cpu_count() or 1
    online = bytearray((cpus + 7) // 8)
    for number in range(cpus):
        online[number // 8] |= 1 << number % 8
    return {"cpumap": bytes(online) if need_map else b"", "online": cpus, "ret": cpus}


def node_get_cpu_stats(_call: Call, *, nparams: int, **_: object) -> Values:
    """Times of the node's processors in nanoseconds; nparams 0 asks how many there are."""
    return nodexml.counted(nodexml.cpu_times(), nparams)


def node_get_memory_parameters(_call: Call, *, nparams: int, flags: int) -> Values:
    """How the kernel merges equal pages (KSM), and what it has merged; nothing where it cannot."""
    _ = flags
    merging = Ksm()
    found = [
        Typed(f"shm_{name}", UINT if name in _KNOBS else ULLONG, value)
        for name, value in (merging.figures() if merging.available() else {}).items()
    ]
    return {"params": found[:nparams], "nparams": len(found)}


def node_get_memory_stats(_call: Call, *, nparams: int, **_: object) -> Values:
    """Memory of the node in KiB."""
    found = nodexml.meminfo()
    names = {"total": "MemTotal", "free": "MemFree", "buffers": "Buffers", "cached": "Cached"}
    return nodexml.counted({name: found[key] // KIB for name, key in names.items()}, nparams)
