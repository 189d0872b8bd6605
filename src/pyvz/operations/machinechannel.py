"""The channels of a running virtual machine: bytes to and from /dev/virtio-ports/NAME inside.

QEMU talks to one client of a channel at a time.  That of the guest agent is among them: while
somebody has it open, we do not reach the agent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
_guard = threading.Lock()
_opening: set[tuple[str, str]] = set()  # channels that are just being opened; guarded by _guard


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
    with _alone(env.uuid, own[name]) as alone:
        # Who left a moment ago is there for QEMU until it looks again.
        if not alone or not _becomes(monitor, own[name], free=True):
            raise Busy(f"The channel {name} of {env.name} is in use by another client")
        sock = node.machines.connect(env.uuid, own[name])
        # And who has come is not: until it has looked, the next one would be let in, to wait.
        _becomes(monitor, own[name], free=False)
    return sock.detach()


@contextmanager
def _alone(uuid: str, name: str) -> Iterator[bool]:
    """Tell whether nobody else is just opening that channel; keeps others out for the block."""
    key = (uuid, name)
    with _guard:
        alone = key not in _opening
        _opening.add(key)
    try:
        yield alone
    finally:
        if alone:
            with _guard:
                _opening.discard(key)


def _becomes(monitor: Monitor, name: str, *, free: bool) -> bool:
    """Wait until QEMU says that nobody (or somebody) is connected; whether it does in time."""
    for wait in looks(_PATIENCE):
        if channels.is_free(monitor, name) == free:
            return True
        time.sleep(wait)
    return False
