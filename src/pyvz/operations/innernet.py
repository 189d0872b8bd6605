"""The network inside a container, as somebody in it has changed it: kept over a dump.

CRIU saves nothing of it (empty_ns), because the interfaces are the node's business.  What the
configuration says is put down as at a start; what is saved here comes on top: addresses, routes and
rules set inside, the filter (nft and iptables).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from pyvz.container.runtime import NetworkAccess
from pyvz.errors import CheckpointError, CommandFailed, NetworkError, VZError
from pyvz.linux import netcopy, run
from pyvz.model.environment import Environment
from pyvz.network.links import Links
from pyvz.operations.node import Node

log = logging.getLogger(__name__)

_TIMEOUT = 30.0
_SAVERS = {"ip": "iptables-nft", "ip6": "ip6tables-nft"}


def save(node: Node, env: Environment) -> dict[str, Any]:
    """Return what is in the network namespace of a running container.

    Raises CheckpointError for interfaces that were made inside: they cannot be saved.
    """
    plan = Links(node.paths).applied(env.uuid)
    known = {each.name for each in plan.interfaces} if plan is not None else set()
    with node.runtime.network(env.uuid) as access:
        try:
            saved = netcopy.save(access.netlink)
        except OSError as error:
            raise NetworkError(f"The network of {env.name} cannot be read: {error}") from error
        foreign = netcopy.own_links(saved, known)
        if foreign:
            raise CheckpointError(
                f"{env.name} has network interfaces of its own: {', '.join(foreign)}",
                hint="They cannot be saved. Take them down inside first (ip link delete).",
            )
        return saved | _save_filter(access)


def restore(env: Environment, saved: Mapping[str, Any], access: NetworkAccess) -> None:
    """Put back what `save` has found; what the kernel refuses is logged."""
    if not saved:
        return
    for text in netcopy.restore(access.netlink, saved):
        log.warning("%s: its network as it was: %s", env.name, text)
    _restore_filter(env, saved, access)


def _save_filter(access: NetworkAccess) -> dict[str, Any]:
    """Return {"nft": objects, "iptables": {family: text}}: what each tool can put back."""
    try:
        listed = json.loads(_inside(access, ["nft", "-j", "list", "ruleset"]))["nftables"]
    except (VZError, ValueError, KeyError) as error:
        log.warning("its packet filter cannot be read: %s", error)
        return {"nft": [], "iptables": {}}
    objects = [each for each in listed if "metainfo" not in each]
    foreign = {_table(each) for each in objects if '"xt"' in json.dumps(each)}
    kept = [each for each in objects if _table(each) not in foreign]
    iptables = {}
    for family in sorted({family for family, _ in foreign}):
        if family in _SAVERS:
            iptables[family] = _inside(access, [f"{_SAVERS[family]}-save", "--counters"])
    return {"nft": kept, "iptables": iptables}


def _restore_filter(env: Environment, saved: Mapping[str, Any], access: NetworkAccess) -> None:
    try:
        if saved.get("nft"):
            commands = [{"add": each} for each in saved["nft"]]
            _inside(access, ["nft", "-j", "-f", "-"], json.dumps({"nftables": commands}))
        for family, text in saved.get("iptables", {}).items():
            _inside(access, [f"{_SAVERS[family]}-restore", "--counters"], text)
    except VZError as error:
        log.warning("%s: its packet filter could not be put back: %s", env.name, error)


def _table(item: Mapping[str, Any]) -> tuple[str, str]:
    """The table that an object of nft's list belongs to."""
    [(kind, fields)] = item.items()
    return str(fields.get("family")), str(fields["name"] if kind == "table" else fields["table"])


def _inside(access: NetworkAccess, argv: list[str], data: str = "") -> str:
    """Run a program of the node in the container's network namespace, and in nothing else of it."""
    command = ["nsenter", f"--net=/proc/self/fd/{access.namespace}", "--", *argv]
    try:
        done = run.run(command, input=data, timeout=_TIMEOUT, pass_fds=(access.namespace,))
    except FileNotFoundError as error:
        raise CommandFailed(f"{argv[0]} is not installed") from error
    return done.stdout
