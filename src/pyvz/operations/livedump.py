"""A running container's memory on its way to another node: the giving side.

    rounds       memory while everything runs, where the kernel tracks it (precopy.py)
    frame        what a restore has to know, sent before anything stands still
    freeze       CRIU halts the processes; the node's ends of the interfaces lead nowhere
    dump         memory and state into images; beside it, what standstill.py does
    hold         the cgroup is frozen, too: whatever dies from here on, nothing of it runs
    ...          restore and decision: what `decide` waits for
    end          the other node has it: the processes are killed; else they go on

The caller holds the lease and keeps the journal.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyvz.container.checkpoint import DumpHooks, Worker
from pyvz.container.criurequest import DumpRequest
from pyvz.container.criurpc import CriuDied
from pyvz.container.frame import Frame
from pyvz.errors import InDoubt, Timeout, Unsupported, VZError
from pyvz.linux import file, pipes
from pyvz.migration.pageline import PageLine
from pyvz.model.environment import Environment
from pyvz.model.task import NoProgress
from pyvz.operations import dump, ground, innernet, network, suspend
from pyvz.operations.node import Node
from pyvz.operations.sideline import Sideline

log = logging.getLogger(__name__)

_KILL_TIMEOUT: Final = 30.0
# Names in <home>/dump; two, because both nodes may see the same home.
LEAVING, ARRIVING = ".images", ".arriving"
LAZY_PIPE: Final = 4 << 20  # bytes; CRIU asks for 3.2 MiB and does not look whether it got them
SETTLE: Final = 120.0  # seconds for a CRIU that has lost its vzd
_TICK: Final = 0.02  # seconds
_ROOM: Final = 1.25  # images need so much more than the memory that is used


def check(node: Node, env: Environment, *, lazy: bool) -> dict[str, Any]:
    """Return what the other node has to know of CRIU here; raises Unsupported, Busy."""
    suspend.ready(node, env, node.registry.config(env))
    suspend.foreign(node, env)
    if lazy:
        require_lazy(node)
        pipes.allow(LAZY_PIPE)
    return {"criu": list(node.checkpoint.program().version), "lazy": lazy}


def require_lazy(node: Node) -> None:
    """Raise Unsupported unless CRIU can fetch pages later on this kernel."""
    if not node.checkpoint.features().lazy_pages:
        raise Unsupported(
            "This node's kernel or CRIU cannot fetch memory later (userfaultfd)",
            hint="Leave --post-copy out.",
        )


class Hooks(NamedTuple):
    """What is done in the course of a live migration, besides the dump.

    rounds: sends memory while it runs, and returns the name of the last round below the images.
    ready: gets the directory that holds the frame; nothing stands still yet.  lock: everything
    stands still from now on.  send: the dump is complete: send the rest of it.  decide: have it
    restored and taken; what it raises lets the container go on, except InDoubt: then it stands
    still until that is settled.  follow: it runs there; returns when its pages are there, too.
    """

    rounds: Callable[[Path, Frame], str]
    ready: Callable[[Path], None]
    lock: Callable[[], None]
    send: Callable[[Path], None]
    decide: Callable[[], None]
    follow: Callable[[], None]


class Live:
    """One live migration."""

    def __init__(self, node: Node, env: Environment) -> None:
        self._node, self._env = node, env
        self._doubt = False
        self.taken = False  # set by whoever knows the decision

    def run(self, mine: Hooks, pages: PageLine | None = None) -> None:
        """Dump and deliver; raises what the hooks raise, CheckpointError.

        pages: they stay here, and are fetched by it when it runs there already (post-copy).
        """
        node, env = self._node, self._env
        spec = dump.specification(node, env, node.registry.config(env))
        engine = node.checkpoint
        fds = () if pages is None else (pages.theirs.fileno(),)
        with ExitStack() as stack:
            images = stack.enter_context(images_of(node, env))
            frame = engine.frame(spec)
            parent = "" if pages is not None else mine.rounds(images, frame)
            worker = stack.enter_context(engine.worker(env.uuid, images, fds=fds))
            frame = frame._replace(network=innernet.save(node, env))
            frame.save(images)
            mine.ready(images)
            request = DumpRequest(frame, track_mem=bool(parent), parent=parent)

            def frozen() -> bool:
                node.cgroups.freeze(env.uuid)
                mine.send(images)
                if pages is None:
                    self._decided(mine)
                return True

            def locked() -> None:
                mine.lock()
                network.unplug(node, env.uuid)

            hooks = DumpHooks(network_lock=locked, frozen=frozen, network_unlock=self._unlocked)
            try:
                if pages is None:
                    engine.dump(worker, request, hooks)
                else:
                    self._lazily(worker, frame, hooks, mine, pages)
            except BaseException as error:
                if self.taken:
                    log.warning("%s: CRIU failed when it had gone: %s", env.name, error)
                    return
                if not self._doubt:
                    broken = pages is not None or isinstance(error, (CriuDied, Timeout))
                    dump.go_on(node, env, broken=broken)
                raise

    def _decided(self, mine: Hooks) -> None:
        try:
            mine.decide()
        except InDoubt:
            self._doubt = True
            raise

    def _lazily(
        self, worker: Worker, frame: Frame, hooks: DumpHooks, mine: Hooks, pages: PageLine
    ) -> None:
        """Dump all but the pages, which CRIU serves until we close the line."""
        pages.given()
        sent = threading.Event()

        def frozen() -> bool:
            hooks.frozen()
            sent.set()
            return True

        request = DumpRequest(frame, lazy_pages=True, page_fd=worker.number(0))
        mended = hooks._replace(frozen=frozen)
        engine = self._node.checkpoint
        dumping = Sideline("dump", lambda _: engine.dump(worker, request, mended), NoProgress())
        dumping.start()
        try:
            while not sent.wait(_TICK):
                if dumping.ended:
                    dumping.result(lambda: None, SETTLE)
            pages.start()
            self._decided(mine)
            mine.follow()
        finally:
            pages.close()
            with suppress(VZError):  # CRIU has lost its line
                dumping.result(lambda: None, SETTLE)

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
