"""What a virtual machine's move leaves on the node that it leaves, done or not.

Used by who moves it (machinegiving.py), and by who repairs after a death (departure.py).
"""

from __future__ import annotations

from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.operations import machineground
from pyvz.operations.node import Node
from pyvz.store.journal import Journal
from pyvz.store.state import RunState
from pyvz.vm import livememory, mirror


def release(node: Node, env: Environment) -> None:
    """Let a machine go on here whose move was called off, or died; repeatable.

    One that has ended meanwhile is left to whoever cleans up after it.  Raises VZError.
    """
    if env.uuid not in node.machines.running():
        return
    monitor = node.machines.monitor(env.uuid)
    record = Journal.leftover(node.paths, env.uuid)
    frozen = record.step("frozen") if record is not None else None
    # First the memory: the disks of a machine that waits at its switch-over cannot be let go of.
    livememory.call_off(monitor, run=frozen is not None and not frozen.data.get("paused"))
    (env.home / ".running").touch()  # the other node may have taken it away, on shared storage
    for name in mirror.names_of(monitor):
        mirror.drop(monitor, name)


def end(node: Node, env: Environment) -> None:
    """Take away what one that has gone has left on this node; idempotent."""
    if env.uuid in node.machines.running():
        # It runs on the other node by now, and is not to be seen running here while QEMU ends.
        state = RunState.load(node.paths, env.uuid)
        if state is not None:
            state._replace(status=Status.STOPPING).save(node.paths, env.uuid)
        machineground.quit_machine(node, env)
    machineground.clear(node, env)
