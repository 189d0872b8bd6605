"""A container's memory on disk: how it gets there, how it comes back, and what a death leaves.

    <home>/dump/Dump/         a suspended container: its memory, packed (container/dumpfile.py)
    <home>/dump/Dump.new/     the same while it is written
    <home>/dump/.images/      the images of CRIU, as long as it reads or writes them

Suspending commits when the packed directory has its name: until then the container stands still
and goes on whatever happens, from then on it only ends.  Nothing of it runs in between, since its
cgroup is frozen.  Resuming commits when everything is restored and nothing has run yet; until then
the packed memory is untouched, and afterwards it is void, because the disk changes.
The caller holds the lease.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pyvz.container import dumpfile, dumpwriter, fifos, guestinit
from pyvz.container.checkpoint import DumpHooks, RestoreHooks
from pyvz.container.criurequest import DumpRequest
from pyvz.container.criurpc import CriuDied
from pyvz.container.frame import Frame
from pyvz.container.runtime import Init, NetworkAccess
from pyvz.container.spec import Bind, ContainerSpec
from pyvz.errors import RestoreError, Timeout, VZError
from pyvz.linux import file, tcprepair
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import diskmount, ground, home, innernet, memory, network, oncemore
from pyvz.operations.node import Node
from pyvz.store.journal import Journal, Record
from pyvz.store.state import RunState

log = logging.getLogger(__name__)

SUSPEND, RESUME = "suspend", "resume"
VERBS = frozenset({SUSPEND, RESUME})  # whose journal records `repair` understands

_COMMIT = "commit"
_SETTLE = 120.0  # seconds for a CRIU that has lost its vzd to end what it does
_KILL_TIMEOUT = 30.0


class DumpOptions(NamedTuple):
    """Where to, and what becomes of the container: it ends, or (stay) stands still, frozen."""

    target: Path
    stay: bool = False


class ResumeOptions(NamedTuple):
    """Where from.  keep: the file stays.  frozen: it stands still afterwards."""

    source: Path
    keep: bool = False
    frozen: bool = False


def default(env: Environment) -> Path:
    """Return where the memory of a suspended container is."""
    return env.home / "dump" / "Dump"


def pending(env: Environment) -> bool:
    """Whether the container is suspended, so that starting it means to resume it."""
    return default(env).exists()


def drop(env: Environment) -> bool:
    """Forget the memory of a suspended container: it is stopped then; False when there is none."""
    found = pending(env)
    _remove(default(env))
    return found


def specification(node: Node, env: Environment, config: Config) -> ContainerSpec:
    """Return what the engine must know to dump or restore a container whose root is mounted."""
    with GuestRoot.open(node.root(env, config)) as guest:
        kind = guestinit.detect(guest)
    spec = ground.specification(node, env, config, kind, repair_mode=False)
    disks = [disk for disk in diskmount.disks_of(env, config) if disk.entry.enabled]
    shown = [
        Bind(diskmount.place(node, env, disk), disk.entry.mnt) for disk in disks if disk.entry.mnt
    ]
    return spec._replace(binds=(*spec.binds, *shown))


# -- to disk ------------------------------------------------------------------------------------


def save(
    node: Node,
    env: Environment,
    target: Path,
    progress: Progress,
    *,
    at: Callable[[], None] | None = None,
    leave_running: bool = False,
) -> None:
    """Write the memory of a running container to `target`, packed, while it stands still.

    at: is called when it is written, and before anything goes on: for what has to be of the same
    moment.  Afterwards the container has ended, or (leave_running) goes on.  While it ends nothing
    of it runs, whatever dies.  Raises CheckpointError, NoSpace, and what `at` raises: it goes on.
    """

    def once() -> None:
        _save(node, env, target, progress, at=at, leave_running=leave_running)

    oncemore.until_done(env.name, once, progress.check)


def _save(
    node: Node,
    env: Environment,
    target: Path,
    progress: Progress,
    *,
    at: Callable[[], None] | None,
    leave_running: bool,
) -> None:
    spec = specification(node, env, node.registry.config(env))
    engine = node.checkpoint
    with (
        _images(env) as images,
        dumpwriter.Packing(images, target, fifos=_fifos(node, env)) as packing,
        engine.worker(env.uuid, images) as worker,
    ):
        frame = engine.frame(spec)._replace(network=innernet.save(node, env))
        request = DumpRequest(frame, leave_running=leave_running)

        def frozen() -> bool:
            progress.stage("Writing memory")
            if not leave_running:
                node.cgroups.freeze(env.uuid)
            with _writing(env):
                packing.finish(progress)
            if at is not None:
                at()
            return True

        hooks = DumpHooks(
            network_lock=lambda: network.unplug(node, env.uuid),
            frozen=frozen,
            network_unlock=lambda: network.plug(node, env.uuid),
        )
        progress.stage("Halting the processes")
        try:
            engine.dump(worker, request, hooks)
        except BaseException as error:
            if leave_running or not target.exists():
                go_on(node, env, broken=isinstance(error, (CriuDied, Timeout)))
                if packing.failure is not None:  # so that CRIU could not write
                    with _writing(env):
                        raise packing.failure from error
                raise
            log.warning("%s: CRIU failed when all was written: %s", env.name, error)


def _fifos(node: Node, env: Environment) -> int:
    """How many files of memory are packed while they are written; others are packed afterwards."""
    return fifos.count_for(len(node.cgroups.pids(env.uuid)))


def _writing(env: Environment) -> AbstractContextManager[None]:
    return home.storage_errors(f"The memory of {env.name} could not be written")


def keep(node: Node, env: Environment, images: Path) -> None:
    """Make the images of one that could not be restored the memory of a suspended container."""
    _remove(default(env))
    default(env).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _writing(env):
        dumpwriter.pack(images, default(env), NoProgress())
    node.publish("ve-suspend", env)


def suspend(node: Node, env: Environment, options: DumpOptions, progress: Progress) -> None:
    """Write a running container's memory to disk and end it.

    Raises CheckpointError, NoSpace, StorageError: it goes on as if nothing had been.
    """
    state = RunState.load(node.paths, env.uuid)
    data = home.to_data(env) | {"target": os.fspath(options.target), "stay": options.stay}
    _remove(options.target)  # of an earlier time: the container runs, so it is void
    options.target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    journal = Journal.begin(node.paths, env.uuid, SUSPEND, data)
    try:
        if state is not None:
            state._replace(status=Status.SUSPENDING).save(node.paths, env.uuid)
        save(node, env, options.target, progress, leave_running=options.stay)
        if options.stay:
            node.runtime.pause(env.uuid)
    except BaseException:
        _remove(options.target)
        if state is not None:
            state.save(node.paths, env.uuid)
        journal.done()
        raise
    if options.stay:
        if state is not None:
            state.save(node.paths, env.uuid)
    else:
        _end(node, env)
    journal.done()


def carried(env: Environment) -> dict[str, object]:
    """Return what the record of an operation has to hold that calls `carry`."""
    return {"target": os.fspath(default(env)), "stay": False}


def carry(node: Node, env: Environment, progress: Progress) -> None:
    """Suspend a container within an operation that has a record, with `carried` in it.

    Raises as `suspend`; what a death leaves is for `repair_carried`.
    """
    _remove(default(env))
    default(env).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        save(node, env, default(env), progress)
    except BaseException:
        _remove(default(env))
        raise
    _end(node, env)


def repair_carried(node: Node, env: Environment, record: Record) -> None:
    """Undo or finish a `carry` that was killed: it goes on, or is suspended."""
    node.checkpoint.settle(env.uuid, _SETTLE)
    _repair_suspend(node, env, record)
    file.remove_tree(_images_of(env))


def _end(node: Node, env: Environment) -> None:
    """Take away what a container that is on disk has left in the kernel."""
    node.runtime.kill(env.uuid, timeout=_KILL_TIMEOUT)
    ground.clear(node, env)


def go_on(node: Node, env: Environment, *, broken: bool = False) -> None:
    """Let a container go on whose dump has failed; `broken`: CRIU could not clean up."""
    if env.uuid not in node.runtime.running():
        return
    if broken:
        count = tcprepair.mend(node.cgroups.pids(env.uuid))
        log.warning("%s: CRIU was ended at work; %d sockets were mended", env.name, count)
    if node.cgroups.frozen(env.uuid):
        node.runtime.unpause(env.uuid)
    network.plug(node, env.uuid)


def let_go_on(node: Node, env: Environment) -> None:
    """Undo what a killed `save` with leave_running has left of its work; repeatable."""
    node.checkpoint.settle(env.uuid, _SETTLE)
    go_on(node, env, broken=True)
    file.remove_tree(_images_of(env))


# -- from disk ----------------------------------------------------------------------------------


def resume(node: Node, env: Environment, options: ResumeOptions, progress: Progress) -> None:
    """Bring a container back from disk.

    Raises RestoreError, StorageError, NetworkError, NotEnoughResources: the memory stays on disk.
    """
    config = node.registry.config(env)
    memory.admit(node, env, config)
    data = home.to_data(env) | {"source": os.fspath(options.source), "keep": options.keep}
    with ExitStack() as undo:
        undo.callback(memory.release, node, env.uuid)
        journal = Journal.begin(node.paths, env.uuid, RESUME, data)
        undo.callback(journal.done)
        progress.stage("Reading memory")
        images = undo.enter_context(_images(env))
        with home.storage_errors(f"The memory of {env.name} could not be read"):
            dumpfile.unpack(options.source, images, progress)
        frame = _fitting(env, Frame.load(images))
        ground.mount_root(node, env, undo)
        spec = specification(node, env, config)
        undo.callback(network.clean, node, env.uuid)
        progress.stage("Resuming")
        _restore(node, env, spec, frame, images, journal)
        undo.pop_all()
    _finish(node, env, options.source, keep=options.keep)
    journal.done()
    if options.frozen:
        node.runtime.pause(env.uuid)


def _restore(
    node: Node,
    env: Environment,
    spec: ContainerSpec,
    frame: Frame,
    images: Path,
    journal: Journal,
) -> None:
    engine = node.checkpoint
    furnish = network.prepare(node, env, node.registry.config(env), plugged=False)
    kind = guestinit.by_name(_kind_of(node, env))

    def adopted(init: Init) -> None:
        ground.running_state(init, kind).save(node.paths, env.uuid)
        (env.home / ".running").touch()
        journal.note(_COMMIT)

    def namespaces(access: NetworkAccess) -> None:
        if furnish is not None:
            furnish(access)
        innernet.restore(env, frame.network, access)

    hooks = RestoreHooks(
        namespaces=namespaces,
        adopted=adopted,
        network_unlock=lambda: network.plug(node, env.uuid),
    )
    with engine.worker(env.uuid, images, root=engine.root(spec, frame)) as worker:
        try:
            engine.restore(worker, spec, frame, hooks)
        except BaseException:
            RunState.clear(node.paths, env.uuid)
            (env.home / ".running").unlink(missing_ok=True)
            raise


def _kind_of(node: Node, env: Environment) -> str:
    with GuestRoot.open(node.root(env)) as guest:
        return str(guestinit.detect(guest).name)


def _fitting(env: Environment, frame: Frame) -> Frame:
    """Return the frame when its images are this container's and this machine's."""
    if frame.uuid != env.uuid:
        raise RestoreError(f"This is the memory of another container ({frame.uuid})")
    if frame.machine != os.uname().machine:
        raise RestoreError(f"This is the memory of a container on a {frame.machine} machine")
    return frame


def _finish(node: Node, env: Environment, source: Path, *, keep: bool) -> None:
    """Do what follows when a resumed container runs; may be repeated."""
    memory.activate(node, env)
    if not keep:
        _remove(source)
    file.remove_tree(_images_of(env))


# -- after a death ------------------------------------------------------------------------------


def repair(node: Node, record: Record) -> None:
    """Undo or finish what a killed verb of VERBS left, and close its record; repeatable."""
    env = home.from_data(record.uuid, record.data)
    log.warning("%s: repairing an unfinished %s", env.name, record.verb)
    node.checkpoint.settle(env.uuid, _SETTLE)
    if record.verb == SUSPEND:
        _repair_suspend(node, env, record)
    else:
        _repair_resume(node, env, record)
    file.remove_tree(_images_of(env))
    Journal.forget(node.paths, record.uuid)


def _repair_suspend(node: Node, env: Environment, record: Record) -> None:
    target = Path(str(record.data["target"]))
    file.remove_tree(target.with_name(target.name + ".new"))
    if target.exists() and not record.data.get("stay"):
        _end(node, env)
        return
    _remove(target)
    if env.uuid not in node.runtime.running():
        ground.clear(node, env)
        return
    go_on(node, env, broken=True)
    state = RunState.load(node.paths, env.uuid)
    if state is not None:
        state._replace(status=Status.RUNNING).save(node.paths, env.uuid)


def _repair_resume(node: Node, env: Environment, record: Record) -> None:
    running = env.uuid in node.runtime.running()
    source = Path(str(record.data["source"]))
    if record.step(_COMMIT) is not None:
        # From here on it may have run and changed its disk: there is no way back.
        if running:
            network.plug(node, env.uuid)
            _finish(node, env, source, keep=bool(record.data.get("keep")))
            return
        _remove(source)
    elif running:
        node.runtime.kill(env.uuid, timeout=_KILL_TIMEOUT)
    ground.clear(node, env)


# -- parts --------------------------------------------------------------------------------------


def _images_of(env: Environment) -> Path:
    return env.home / "dump" / ".images"


@contextmanager
def _images(env: Environment) -> Iterator[Path]:
    """Have an empty directory for CRIU, which is gone at the end.

    CRIU opens it as the container's root, too, so it is open to all; only root gets that far.
    """
    path = _images_of(env)
    file.remove_tree(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    path.mkdir()
    path.chmod(0o755)
    try:
        yield path
    finally:
        with suppress(VZError, OSError):
            file.remove_tree(path)


def _remove(path: Path) -> None:
    """Take a dump away, at once; nothing there is fine."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    gone = path.with_name(path.name + ".gone")
    file.remove_tree(gone)
    path.rename(gone)
    file.remove_tree(gone)
