"""A running container that arrives with its memory: the taking side.

    prepare    its home has its place (still unborn); as soon as they are there, its disks are
               mounted, and CRIU waits; the memory arrives in the meantime
    restore    everything is restored, and nothing runs yet
    decide     the journal's and the other node's business
    go         it runs; its interfaces lead to the world

All but the decision is done in a thread of its own, which waits for it in the middle of CRIU's
restore.  Until it goes, whatever fails or dies takes everything away.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from pyvz.container import guestinit
from pyvz.container.checkpoint import RestoreHooks
from pyvz.container.frame import Frame
from pyvz.container.runtime import Init, NetworkAccess
from pyvz.errors import MigrationError, NodesDiffer, RestoreError, VZError
from pyvz.linux import file, userfault
from pyvz.linux.guestroot import GuestRoot
from pyvz.migration import files
from pyvz.migration.offer import Offer
from pyvz.migration.wire import Channel
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.operations import (
    dump,
    ground,
    home,
    innernet,
    livedump,
    memory,
    memoryrounds,
    network,
)
from pyvz.operations.fetching import Fetching, end_fetcher
from pyvz.operations.node import Node
from pyvz.store.journal import Journal
from pyvz.store.state import RunState

log = logging.getLogger(__name__)

USERFAULT: Final = "userfaultfd"  # in <run>: what the switch was (linux/userfault.py)
GOING: Final = "going"  # step of the journal: from here on it may have run
_IMAGES_TIMEOUT: Final = 7 * 86400.0  # a dead connection is seen at once
_PATIENCE: Final = 900.0  # for CRIU
_DECISION: Final = 7 * 86400.0


def check(node: Node, offer: Offer) -> None:
    """Raise NodesDiffer or Unsupported when memory of that node cannot be restored here."""
    if offer.checkpoint.get("lazy"):
        livedump.require_lazy(node)
    here = node.checkpoint.program().version
    there = tuple(int(part) for part in offer.checkpoint.get("criu") or ())
    if there and here < there:
        raise NodesDiffer(
            f"CRIU of this node ({_text(here)}) is older than that of the other one "
            f"({_text(there)})",
            hint="script/criu builds a newer one; or migrate it without --online.",
        )


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


class Arrival:
    """One container on its way into life."""

    def __init__(
        self,
        node: Node,
        env: Environment,
        config: Config,
        journal: Journal,
        rounds: memoryrounds.Rounds | None = None,
    ) -> None:
        self._node, self._env, self._config, self._journal = node, env, config, journal
        self._rounds = rounds
        self.images = node.paths.run / "images" / env.uuid
        self._frame: Frame | None = None
        self._changed = threading.Condition()
        self._mountable = False  # the root
        self._complete = False  # the images
        self._ready = False  # all is restored
        self._decision: bool | None = None
        self._error: BaseException | None = None
        self._init: Init | None = None
        self._channel: Channel | None = None
        self._receiver: threading.Thread | None = None
        self._fetching: Fetching | None = None
        self._thread = threading.Thread(target=self._run, name=f"restore-{env.uuid}", daemon=True)

    def prepare(
        self, frame: str, channel: Channel, pages: Channel | None, *, memory_used: int
    ) -> None:
        """Begin; `frame` is the text of the frame's file, the images come by `channel`.

        pages: where memory is fetched when it runs already (post-copy).
        """
        if self._rounds is None:
            self.images = livedump.place_of(
                self._node, self._env, memory=memory_used, name=livedump.ARRIVING
            )
            livedump.make(self.images)
        else:
            self.images = self._rounds.end()
        file.write_atomic(self.images / "pyvz.json", frame, 0o600)
        self._frame = Frame.load(self.images)
        if self._frame.uuid != self._env.uuid:
            raise RestoreError("The memory is that of another container")
        self._channel = channel
        if pages is not None:
            self._fetching = Fetching(self._node.checkpoint, self.images, pages)
        self._receiver = threading.Thread(target=self._receive, name="images", daemon=True)
        self._receiver.start()
        self._thread.start()

    def root_is_here(self) -> None:
        """Its disks are whole, or trees: the root may be mounted."""
        with self._changed:
            self._mountable = True
            self._changed.notify_all()

    def failed(self) -> None:
        """Raise what went wrong, if something did."""
        if self._error is not None:
            raise self._error

    def _receive(self) -> None:
        assert self._channel is not None  # noqa: S101  prepare() was called
        error: BaseException | None = None
        try:
            with home.storage_errors("The memory could not be written"):
                files.receive(self._channel, self.images, _IMAGES_TIMEOUT)
        except Exception as failure:  # noqa: BLE001  told by whoever waits
            error = failure
            self._channel.refuse()
        with self._changed:
            self._error = self._error or error
            self._complete = error is None
            self._changed.notify_all()

    def restore(self) -> None:
        """Have everything restored; returns when only the decision is missing."""
        with self._changed:
            self._await(lambda: self._ready, "restored")

    def go(self) -> None:
        """It is ours: let it run; raises when it does not."""
        self._decide(goes=True)
        self._thread.join(_PATIENCE)
        if self._init is None:
            raise self._error or RestoreError(f"{self._env.name} was not restored in time")
        if self._fetching is None:
            livedump.remove(self.images)

    @property
    def lazy(self) -> bool:
        """Whether a part of its memory comes when it runs already."""
        return self._fetching is not None

    def fetched(self) -> None:
        """Wait until all of its memory is here; raises MigrationError: it has been ended."""
        assert self._fetching is not None  # noqa: S101  lazy was asked
        self._fetching.wait(self._end)
        livedump.remove(self.images)

    def lost(self) -> None:
        """It runs, and not all of its memory will come: end it, before it takes notice."""
        assert self._fetching is not None  # noqa: S101
        self._end()
        self._fetching.close()
        ground.clear(self._node, self._env)
        livedump.remove(self.images)

    def _end(self) -> None:
        if self._env.uuid in self._node.runtime.running():
            self._node.runtime.kill(self._env.uuid, timeout=30.0)

    def cancel(self) -> None:
        """Take everything away."""
        if self._channel is not None:
            self._channel.abandon()
        for thread in (self._receiver, self._thread):
            if thread is not None and thread.ident is not None:
                self._decide(goes=False)
                thread.join(_PATIENCE)
        if self._fetching is not None:
            self._fetching.close()
        livedump.remove(self.images)

    def _decide(self, *, goes: bool) -> None:
        with self._changed:
            if self._decision is None:
                self._decision = goes
            self._changed.notify_all()

    def _await(self, done: object, what: str) -> None:
        """Wait until DONE says yes; the caller holds `_changed`."""
        assert callable(done)  # noqa: S101
        self._changed.wait_for(lambda: done() or self._error is not None, _PATIENCE)
        if self._error is not None:
            raise self._error
        if not done():
            raise MigrationError(f"{self._env.name} was not {what} in time")

    # The thread

    def _run(self) -> None:
        try:
            with ExitStack() as undo:
                self._restore(undo)
                undo.pop_all()
        except BaseException as error:  # noqa: BLE001  told by whoever waits
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _restore(self, undo: ExitStack) -> None:
        node, env, config = self._node, self._env, self._config
        memory.admit(node, env, config)
        undo.callback(memory.release, node, env.uuid)
        furnish = network.prepare(node, env, config, plugged=False)
        undo.callback(network.clean, node, env.uuid)
        self._wait_for(lambda: self._mountable)
        ground.mount_root(node, env, undo)
        root = node.root(env)
        frame = self._frame
        assert frame is not None  # noqa: S101  prepare() was called
        spec = dump.specification(node, env, config)
        with GuestRoot.open(root) as guest:
            kind = guestinit.by_name(str(guestinit.detect(guest).name))

        def namespaces(access: NetworkAccess) -> None:
            if furnish is not None:
                furnish(access)
            innernet.restore(env, frame.network, access)
            if self._fetching is not None:  # which has started beside CRIU
                self._fetching.listens()

        def adopted(init: Init) -> None:
            state = ground.running_state(init, kind)
            state._replace(status=Status.RESUMING).save(node.paths, env.uuid)
            undo.callback(RunState.clear, node.paths, env.uuid)
            self._hold()
            state.save(node.paths, env.uuid)

        hooks = RestoreHooks(
            namespaces=namespaces,
            adopted=adopted,
            network_unlock=lambda: network.plug(node, env.uuid),
        )
        engine = node.checkpoint
        with engine.worker(env.uuid, self.images, root=engine.root(spec, frame)) as worker:
            self._wait_for(lambda: self._complete)
            if self._fetching is None:
                self._init = engine.restore(worker, spec, frame, hooks)
            else:
                self._fetching.start()
                with userfault.allowed(node.paths.run / USERFAULT):
                    self._init = engine.restore(worker, spec, frame, hooks, lazy_pages=True)
        memory.activate(node, env)
        (env.home / ".running").touch()

    def _wait_for(self, done: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: done() or self._decision is not None or self._error is not None,
                _IMAGES_TIMEOUT,
            )
            if not done():
                raise self._error or MigrationError("It was called off")

    def _hold(self) -> None:
        """All is restored and nothing runs: wait for the decision."""
        with self._changed:
            self._ready = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._decision is not None, _DECISION)
            if not self._decision:
                raise MigrationError("It was called off")
        self._journal.note(GOING)


def settle(node: Node) -> None:
    """Put back what a vzd that was killed while memory was restored has left (start of vzd)."""
    try:
        if userfault.settle(node.paths.run / USERFAULT):
            log.warning("vm.unprivileged_userfaultfd is as it was before a restore that was killed")
    except OSError as error:
        log.warning("vm.unprivileged_userfaultfd could not be put back: %s", error)


def lost_by_death(node: Node, env: Environment) -> None:
    """End one that ran here while its memory was still coming: vzd has died, and it will not."""
    node.checkpoint.settle(env.uuid, 120.0)
    if env.uuid in node.runtime.running():
        node.runtime.kill(env.uuid, timeout=30.0)
    for images in livedump.places(node, env, livedump.ARRIVING):
        end_fetcher(images)
    ground.clear(node, env)
    livedump.tidy(node, env, livedump.ARRIVING)


def after_death(node: Node, env: Environment, *, went: bool) -> None:
    """Bring one to a state that is known whose vzd died after the decision.

    went: it may have run; when it does not any more, it is stopped.  Else its memory, if that is
    complete, becomes that of a suspended container.
    """
    node.checkpoint.settle(env.uuid, 120.0)
    if env.uuid in node.runtime.running():
        state = RunState.load(node.paths, env.uuid)
        if state is not None:
            state._replace(status=Status.RUNNING).save(node.paths, env.uuid)
        network.plug(node, env.uuid)
        memory.activate(node, env)
        (env.home / ".running").touch()
    else:
        ground.clear(node, env)
        for images in livedump.places(node, env, livedump.ARRIVING):
            if not went and (images / "inventory.img").exists():
                _keep(node, env, images)
    livedump.tidy(node, env, livedump.ARRIVING)


def _keep(node: Node, env: Environment, images: Path) -> None:
    try:
        dump.keep(node, env, images)
    except (VZError, OSError):
        log.exception("%s: its memory could not be kept: it is stopped", env.name)


def before_decision(node: Node, env: Environment) -> None:
    """Take away what a death before the decision has left in the kernel."""
    node.checkpoint.settle(env.uuid, 120.0)
    if env.uuid in node.runtime.running():
        node.runtime.kill(env.uuid, timeout=30.0)
    node.runtime.clean(env.uuid)
    memory.release(node, env.uuid)
    network.clean(node, env.uuid)
    RunState.clear(node.paths, env.uuid)
    if env.home.exists():
        ground.umount_root(node, env, cleaning=True)
    livedump.tidy(node, env, livedump.ARRIVING)
