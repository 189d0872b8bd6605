"""A running container's memory on its way to another node: the giving side.

    frame        what a restore has to know, sent before anything stands still
    freeze       CRIU halts the processes; the node's ends of the interfaces lead nowhere
    dump         memory and state into images; beside it, what standstill.py does
    hold         the cgroup is frozen, too: whatever dies from here on, nothing of it runs
    ...          restore and decision: what `deliver` waits for
    end          the other node has it: the processes are killed; else they go on

The caller holds the lease and keeps the journal.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyvz.container.checkpoint import DumpHooks
from pyvz.container.criurequest import DumpRequest
from pyvz.container.criurpc import CriuDied
from pyvz.errors import InDoubt, Timeout, VZError
from pyvz.linux import file
from pyvz.model.environment import Environment
from pyvz.operations import dump, ground, innernet, network, suspend
from pyvz.operations.node import Node

log = logging.getLogger(__name__)

_KILL_TIMEOUT: Final = 30.0
# Names in <home>/dump; two, because both nodes may see the same home.
LEAVING, ARRIVING = ".images", ".arriving"
SETTLE: Final = 120.0  # seconds for a CRIU that has lost its vzd
_ROOM: Final = 1.25  # images need so much more than the memory that is used


def check(node: Node, env: Environment) -> dict[str, Any]:
    """Return what the other node has to know of CRIU here; raises Unsupported, Busy."""
    suspend.ready(node, env, node.registry.config(env))
    suspend.foreign(node, env)
    return {"criu": list(node.checkpoint.program().version)}


class Hooks(NamedTuple):
    """What is done in the course of a live migration, besides the dump.

    ready: gets the directory that holds the frame; nothing stands still yet.  lock: everything
    stands still from now on.  deliver: the dump is complete; returns when the other node has it
    all.  What it raises lets the container go on, except InDoubt: then it stands still until that
    is settled.
    """

    ready: Callable[[Path], None]
    lock: Callable[[], None]
    deliver: Callable[[Path], None]


class Live:
    """One live migration."""

    def __init__(self, node: Node, env: Environment) -> None:
        self._node, self._env = node, env
        self._doubt = False
        self.taken = False  # set by whoever knows the decision

    def run(self, mine: Hooks) -> None:
        """Dump and deliver; raises what the hooks raise, CheckpointError."""
        node, env = self._node, self._env
        spec = dump.specification(node, env, node.registry.config(env))
        engine = node.checkpoint
        with images_of(node, env) as images, engine.worker(env.uuid, images) as worker:
            frame = engine.frame(spec)._replace(network=innernet.save(node, env))
            frame.save(images)
            mine.ready(images)

            def frozen() -> bool:
                node.cgroups.freeze(env.uuid)
                try:
                    mine.deliver(images)
                except InDoubt:
                    self._doubt = True
                    raise
                return True

            def locked() -> None:
                mine.lock()
                network.unplug(node, env.uuid)

            hooks = DumpHooks(network_lock=locked, frozen=frozen, network_unlock=self._unlocked)
            try:
                engine.dump(worker, DumpRequest(frame), hooks)
            except BaseException as error:
                if self.taken:
                    log.warning("%s: CRIU failed when it had gone: %s", env.name, error)
                    return
                if not self._doubt:
                    dump.go_on(node, env, broken=isinstance(error, (CriuDied, Timeout)))
                raise

    def _unlocked(self) -> None:
        if not self._doubt and not self.taken:
            network.plug(self._node, self._env.uuid)


def end(node: Node, env: Environment, *, shared: bool) -> None:
    """Take away what one that has gone has left in the kernel.  Idempotent.

    shared: its home is the other node's now, with the mark that it runs there.
    """
    mark = env.home / ".running"
    runs = shared and mark.exists()
    node.checkpoint.settle(env.uuid, SETTLE)
    if env.uuid in node.runtime.running():
        node.runtime.kill(env.uuid, timeout=_KILL_TIMEOUT)
    ground.clear(node, env)
    if runs:
        mark.touch()


def go_on(node: Node, env: Environment) -> None:
    """Let one go on that did not go, after a death.  Idempotent."""
    node.checkpoint.settle(env.uuid, SETTLE)
    dump.go_on(node, env, broken=True)


def in_memory(node: Node, images: Path) -> bool:
    """Whether these images are in memory (there is room for them), not on the disk."""
    return images.is_relative_to(node.paths.run)


def places(node: Node, env: Environment, name: str = LEAVING) -> tuple[Path, Path]:
    """Return where the images of CRIU may be: in memory, on disk."""
    return node.paths.run / "images" / env.uuid, env.home / "dump" / name


def place_of(node: Node, env: Environment, *, memory: int, name: str = LEAVING) -> Path:
    """Return where the images of CRIU go: into memory where they fit, else to the disk."""
    fast, slow = places(node, env, name)
    free = os.statvfs(node.paths.run)
    if memory * _ROOM < free.f_bavail * free.f_frsize / 2:
        return fast
    return slow


@contextmanager
def images_of(node: Node, env: Environment) -> Iterator[Path]:
    """Have an empty directory for CRIU for the block."""
    path = place_of(node, env, memory=node.runtime.usage(env.uuid).memory or 0)
    make(path)
    try:
        yield path
    finally:
        remove(path)


def make(path: Path) -> None:
    """Make an empty directory for CRIU, which opens it as the container's root, too."""
    file.remove_tree(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    path.mkdir()
    path.chmod(0o755)


def remove(path: Path) -> None:
    """Take it away; nothing there is fine."""
    try:
        file.remove_tree(path)
    except (VZError, OSError) as error:
        log.warning("%s could not be removed: %s", path, error)


def tidy(node: Node, env: Environment, name: str = LEAVING) -> None:
    """Take away images that a death has left."""
    for path in places(node, env, name):
        remove(path)
