"""What is offered to the other node before anything changes: an environment, and what it needs."""

from __future__ import annotations

import os
import platform
from typing import Any
from uuid import uuid4

from pyvz.errors import BadValue
from pyvz.migration.offer import Offer
from pyvz.migration.request import Request
from pyvz.model import params_net as params
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind, canonical_uuid, check_name
from pyvz.operations import clone, home, livedump, machineoffer, suitable
from pyvz.operations.node import Node
from pyvz.operations.outgoing import layout, offers


def offer(node: Node, env: Environment, request: Request, *, running: bool) -> Offer:
    """Return the offer; raises Unsupported, Busy, BadValue: it cannot go so."""
    conf = node.registry.conf_file(env)
    uuid, name = env.uuid, env.name
    live = request.online and running
    if request.clone:
        uuid = str(uuid4())
        _give_new_cards(node, env._replace(uuid=uuid), conf)
    if request.uuid is not None:
        uuid = canonical_uuid(request.uuid) or ""
        if not uuid:
            raise BadValue(f"'{request.uuid}' is not a UUID")
    if request.name is not None:
        name = check_name(request.name)
    envid = env.envid if uuid == env.uuid and env.envid != env.uuid else uuid
    return Offer(
        uuid=uuid,
        envid=envid,
        name=name,
        memory=node.cgroups.usage(env.uuid).memory or 0 if running else 0,
        running=running,
        live=live,
        machine=platform.machine(),
        kernel=os.uname().release,
        cpu=suitable.cpu_flags(),
        place=home.spelled(node, env.home),
        token=str(uuid4()),
        private=request.private,
        shared=request.shared,
        ignore=request.ignore,
        copy=request.clone,
        kind=env.kind,
        **_facts(node, env, conf, request, running=running),
    )


def _facts(
    node: Node, env: Environment, conf: ConfFile, request: Request, *, running: bool
) -> dict[str, Any]:
    """Return what is said of disks and memory, which differs between the kinds."""
    live = request.online and running
    if env.kind == Kind.VM:
        return {
            "conf": machineoffer.configuration(conf, live=live).render(),
            "driver": "",
            "disks": machineoffer.offers(node, env, live=live),
            "checkpoint": machineoffer.needs(node, env, live=live),
        }
    return {
        "conf": conf.render(),
        "driver": layout(env),
        "disks": offers(node, env, running=running),
        "checkpoint": livedump.check(node, env, lazy=request.post_copy) if live else {},
    }


def _give_new_cards(node: Node, env: Environment, conf: ConfFile) -> None:
    """Give a copy network cards of its own; the IP addresses stay, for people to change."""
    if env.kind == Kind.VM:
        machineoffer.give_new_cards(node, env, conf)
        return
    old = Config.parse(conf.values(), lenient=True)
    fresh = tuple(clone.fresh_interface(each) for each in old.network.interfaces)
    for key, value in old.changed({params.NETIF.field: fresh}).differences(old).items():
        conf.set(key, value)
