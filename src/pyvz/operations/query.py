"""Questions about environments and the node.  Nothing here takes a lease or changes anything."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from pyvz.errors import BadValue, Unsupported, VZError
from pyvz.linux.mount import is_mount_point
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.operations import clone, diskinfo, fields, machineinfo, memory, netinfo, nodehardware
from pyvz.operations.fields import FIELDS, Source
from pyvz.operations.node import Node, StatusReader
from pyvz.units import MIB, PAGE_SIZE, UNLIMITED
from pyvz.version import VERSION
from pyvz.vm import accelerator

Row = dict[str, object]


class Rows(NamedTuple):
    """What a list answers: rows in the order asked for, and refs that nobody answers to."""

    rows: list[Row]
    errors: list[tuple[str, str]]


class StatusReport(NamedTuple):
    """What `status` tells."""

    uuid: str
    kind: Kind
    status: Status
    mounted: bool


def rows(
    node: Node, wanted: Sequence[str], *, refs: Sequence[str] = (), kind: Kind | None = None
) -> Rows:
    """Return the `wanted` fields of the environments `refs` (or of all); BadValue names a field."""
    unknown = sorted(set(wanted) - FIELDS.keys())
    if unknown:
        raise BadValue(f"Unknown field: {', '.join(unknown)}")
    found, errors = _resolve(node, refs) if refs else ([], [])
    statuses = StatusReader(node)
    if refs:
        sources = [Source(node, env, statuses) for env in found]
    else:
        sources = [
            Source(node, env, statuses.knowing(env, problem), config)
            for env, config, problem in node.registry.snapshot()
        ]
    sources = [source for source in sources if kind is None or source.env.kind == kind]
    if "ip" in wanted:
        fields.hear(sources)
    readers = [(name, FIELDS[name]) for name in wanted]
    answer: list[Row] = [{name: read(source) for name, read in readers} for source in sources]
    return Rows(answer, errors)


def status(node: Node, ref: str) -> StatusReport:
    """Return the state of one environment; raises EnvironmentNotFound."""
    env = node.registry.resolve(ref)
    return StatusReport(env.uuid, env.kind, node.status(env), is_mount_point(node.root(env)))


def info(node: Node, ref: str, *, full: bool = False) -> Row:
    """Return everything about one environment, in the form of `prlctl list -i -j`."""
    env = node.registry.resolve(ref)
    source = Source(node, env, StatusReader(node))
    if env.kind == Kind.VM:
        return machineinfo.info(source, full=full)
    config = source.config
    answer: Row = {
        "ID": env.uuid,
        "EnvID": env.envid,
        "Name": env.name,
        "Description": config.identity.description or "",
        "Type": env.kind.upper(),
        "State": str(source.status),
        "OS": fields.distribution(config) or "",
        "Template": "yes" if config.identity.type == "template" else "no",
        **_link(source),
        "Uptime": str(int(fields.uptime(source))),
        "Home": os.fspath(env.home),
        "Backup path": "",
        "Owner": "root",
        "GuestTools": {"state": "not_installed"},
        "GuestTools autoupdate": "off",
        "Autostart": {"yes": "on", "auto": "auto"}.get(str(config.boot.onboot), "off"),
        "Autostop": str(config.boot.autostop or node.config().ve_stop_mode),
        "Autocompact": "on" if config.disk.autocompact else "off",
        "Boot order": "",
        "EFI boot": "off",
        "Allow select boot device": "off",
        "External boot device": "",
        "Remote display": {"mode": "off", "address": "0.0.0.0"},  # noqa: S104  text, not a bind
        "Remote display state": "stopped",
        "Hardware": _hardware(source, full=full),
        "Features": {
            name: "on" if value else "off" for name, value in FIELDS["features"](source).items()
        },
        "Disabled Windows logo": "on",
        "Nested virtualization": "off",
        "Offline management": {"enabled": False},
        "Hostname": config.network.hostname or "",
        "DNS Servers": " ".join(config.network.nameservers or ()),
        "Search Domains": " ".join(config.network.searchdomains or ()),
    }
    if full:
        answer["High Availability"] = {
            "enabled": "yes" if config.boot.ha_enable is not False else "no",
            "prio": config.boot.ha_prio or 0,
        }
        answer["Network Shaping"] = netinfo.shaping(config)
    return answer


def node_info(node: Node, *, full: bool = False) -> Row:
    """Return what `prlsrvctl info` prints about the node."""
    _ = full
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    uname = platform.uname()
    return {
        "ID": _machine_id(),
        "Hostname": socket.gethostname(),
        "Version": f"Server {VERSION}",
        "VM home": os.fspath(node.paths.vz / "vmprivate"),
        **_memory(node),
        "Minimal security level": "normal",
        "Manage settings for new users": "deny",
        "Backup path": os.fspath(node.paths.vz / "backups"),
        "Backup temporary directory": os.fspath(node.paths.vz / "tmp"),
        "Backup mode": "push",
        "Traffic shaping": "on" if node.config().traffic_shaping else "off",
        "Verbose log": "off",
        "License": {"state": "not installed"},
        "Hardware Id": _machine_id(),
        "Hardware info": {
            "cpu": {"name": f"{os.cpu_count()} CPUs, {uname.machine}", "type": "cpu"},
            "memory": {"name": f"{memory // MIB} MiB", "type": "memory"},
            "kernel": {"name": uname.release, "type": "kernel"},
            **nodehardware.rows(),
        },
        "Features": [
            *(list(row) for row in (*node.features.as_rows(), node.checkpoint.row())),
            _accelerator(node),
        ],
    }


def _memory(node: Node) -> Row:
    """Return the lines about the memory manager: its policy, and the sum of what is promised."""
    promised = sum(entry.minimum for entry in node.memory.entries().values())
    row: Row = {"Vcmmd policy": f"{node.memory.policy} config={node.memory.conf().policy}"}
    with suppress(Unsupported):  # a kernel that counts no memory
        usable = memory.memory_of_node(node).usable
        row["Memory guarantees"] = f"{promised // MIB}Mb of {usable // MIB}Mb"
    return row


def _accelerator(node: Node) -> list[str]:
    """What virtual machines run on, and why."""
    chosen = accelerator.choose(node.paths.run, node.config().values.get(accelerator.KEY, ""))
    return ["Virtual machines", chosen.name, chosen.reason]


def _resolve(node: Node, refs: Sequence[str]) -> tuple[list[Environment], list[tuple[str, str]]]:
    if not refs:
        return node.registry.environments(), []
    found, errors = [], []
    for ref in refs:
        try:
            found.append(node.registry.resolve(ref))
        except VZError as error:
            errors.append((ref, error.message))
    return found, errors


def _link(source: Source) -> Row:
    """Return of whom it is a linked clone: nothing for any other."""
    with contextlib.suppress(VZError):
        original = source.node.registry.conf_file(source.env).get(clone.LINKED)
        return {"Linked clone of": f"{{{original}}}"} if original else {}
    return {}


def _hardware(source: Source, *, full: bool) -> Row:
    config = source.config
    memory = config.memory.physpages
    size = UNLIMITED if memory is None else memory.limit
    hardware: Row = {
        "cpu": _cpu(source),
        "memory": {"size": "unlimited" if size >= UNLIMITED else f"{size * PAGE_SIZE // MIB}Mb"},
        "video": {"size": "0Mb", "3d acceleration": "off", "vertical sync": "yes"},
        "memory_guarantee": {
            "value": "auto" if config.memory.guarantee is None else f"{config.memory.guarantee}%"
        },
    }
    hardware |= diskinfo.hardware(source.env, config)
    if config.network.ip:
        ips = netinfo.addresses(config.network.ip)
        hardware["venet0"] = {"enabled": True, "type": "routed", "ips": ips}
    for index, nic in enumerate(source.bridged):
        hardware[f"net{index}"] = netinfo.card(nic, full=full)
    return hardware


def _cpu(source: Source) -> Row:
    config = source.config
    cpu: Row = {
        "sockets": 1,
        "cpus": config.cpu.cpus or "unlimited",
        "cores": config.cpu.cpus or os.cpu_count() or 1,
        "cpuunits": config.cpu.units or 1000,
    }
    return cpu | fields.cpu_limits(config)


def _machine_id() -> str:
    """Return the machine's id in UUID form (machine-id(5)), zeros where it has none."""
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        text = "0" * 32
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:32]}"
