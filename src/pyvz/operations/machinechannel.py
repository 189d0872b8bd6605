"""The channels of a running virtual machine: bytes to and from /dev/virtio-ports/NAME inside.

QEMU talks to one client of a channel at a time.  That of the guest agent is among them: while
somebody has it open, we do not reach the agent.
"""

from __future__ import annotations

import time
from typing import Final

from pyvz.errors import Busy, NotFound, NotRunning
from pyvz.linux.patience import looks
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import AGENT_CHANNEL
from pyvz.operations import machineground
from pyvz.operations.node import Node
from pyvz.vm import channels
from pyvz.vm.monitor import Monitor
from pyvz.vm.runtime import channel_name

_PATIENCE: Final = 2.0  # seconds until a channel counts as in use


def names(node: Node, env: Environment) -> tuple[str, ...]:
    """Return the channels that a machine was started with, beside the agent's."""
    found = machineground.layout(node, env).channels
    return node.registry.config(env).machine.channels if found is None else found


def connect(node: Node, env: Environment, name: str) -> int:
    """Return a socket that is the channel NAME; raises NotRunning, NotFound, Busy."""
    if env.uuid not in node.machines.running():
        raise NotRunning(f"{env.name} is not running")
    own = {each: channel_name(number) for number, each in enumerate(names(node, env))}
    own[AGENT_CHANNEL] = channels.AGENT
    if name not in own:
        raise NotFound(f"{env.name} has no channel '{name}'")
    monitor = node.machines.monitor(env.uuid)
    if not _gets_free(monitor, own[name]):
        raise Busy(f"The channel {name} of {env.name} is in use by another client")
    return node.machines.connect(env.uuid, own[name]).detach()


def _gets_free(monitor: Monitor, name: str) -> bool:
    """Whether nobody is connected; who left a moment ago is there for QEMU until it looks again."""
    for wait in looks(_PATIENCE):
        if channels.is_free(monitor, name):
            return True
        time.sleep(wait)
    return False
