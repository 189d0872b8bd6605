"""A signal for a process of a running container, by the number that it has inside.

The kernel tells the numbers of a process in each of its namespaces (NSpid of /proc/PID/status).  It
is looked for among those of the container only, and held by a pidfd before it is signalled.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

from pyvz.errors import BadValue, NotFound, NotRunning
from pyvz.model.environment import Environment
from pyvz.operations import transition
from pyvz.operations.node import Node


def send(node: Node, env: Environment, pid: int, number: int) -> None:
    """Send the signal NUMBER (0: see whether it is there) to the process PID.

    Raises NotRunning, NotFound, BadValue, Unsupported.
    """
    transition.containers_only(env, "it has no processes that the node knows")
    if not 0 <= number < signal.NSIG:
        raise BadValue(f"There is no signal {number}")
    init = node.runtime.running(env.uuid).get(env.uuid)
    if init is None:
        raise NotRunning(f"{env.name} is not running")
    level = len(_numbers(init.pid)) - 1
    for outer in node.cgroups.pids(env.uuid):
        with suppress(OSError), ExitStack() as opened:
            held = os.pidfd_open(outer)
            opened.callback(os.close, held)
            if _numbers(outer)[level:][:1] == [pid]:
                signal.pidfd_send_signal(held, number)
                return
    raise NotFound(f"{env.name} has no process {pid}")


def _numbers(pid: int) -> list[int]:
    """Return the numbers of a process in its namespaces, ours first; raises OSError."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return [int(word) for word in line.split()[1:]]
    return []
