"""The birth and the death of a home: the directory that is an environment.

    <parent>/.create-<uuid>/    being built; nobody knows it yet
    <parent>/<uuid>/.unborn     has its place, but its registration is not finished
    <parent>/<uuid>/            alive
    <parent>/.delete-<uuid>/    given up; only its removal is left

A birth commits when `.unborn` (it holds the UUID) is unlinked: before that, failure or death of
vzd takes everything away again; after it, the environment stays.  A death commits when the home
is renamed away: before that nothing has happened, after it the removal is finished by whoever
comes next.  The journal record tells `repair` where to look; each step may be repeated.
The caller holds the lease of the UUID.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from pyvz.errors import (
    AlreadyExists,
    BadValue,
    Busy,
    EnvironmentNotFound,
    Locked,
    NoSpace,
    PrivateExists,
    StorageError,
)
from pyvz.linux import file, mount
from pyvz.model.conffile import ConfFile
from pyvz.model.environment import Environment, Kind
from pyvz.model.task import NoProgress, Progress
from pyvz.model.vzconf import expand_veid
from pyvz.operations import network
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.store.journal import Journal, Record
from pyvz.store.lease import Lease
from pyvz.store.state import RunState

log = logging.getLogger(__name__)

VERBS = frozenset({"create", "clone", "delete"})  # whose journal records `repair` understands
UNBORN = ".unborn"
OWNER = ".owner"
_MACHINE_ID = Path("/etc/machine-id")


def staging_of(env: Environment) -> Path:
    """Return where the home of `env` is built."""
    return env.home.with_name(f".create-{env.uuid}")


def grave_of(env: Environment) -> Path:
    """Return where the home of `env` goes to be removed."""
    return env.home.with_name(f".delete-{env.uuid}")


@contextmanager
def born(node: Node, env: Environment, conf: ConfFile, verb: str) -> Iterator[Path]:
    """Build a home: the block fills the directory it is given; leaving it registers `env`.

    Whatever fails, inside the block or after it, leaves nothing behind.
    Raises PrivateExists, NoSpace, StorageError, and what the block raises.
    """
    with Journal.begin(node.paths, env.uuid, verb, to_data(env)) as journal:
        try:
            with storage_errors(f"The private area of {env.name} could not be made"):
                yield from _build(node, env, conf)
        except BaseException:
            abandon(node, env)
            journal.done()
            raise


def _build(node: Node, env: Environment, conf: ConfFile) -> Iterator[Path]:
    staging = staging_of(env)
    env.home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging.mkdir(mode=0o700)
    (staging / UNBORN).write_text(env.uuid)
    yield staging
    check_free(env.home)
    staging.rename(env.home)
    node.registry.add(env, conf)
    file.fsync_directory(env.home.parent)
    (env.home / UNBORN).unlink()


def abandon(node: Node, env: Environment) -> None:
    """Take away all that an uncommitted birth of `env` has made.  Idempotent."""
    staging = staging_of(env)
    if _is_unborn(env.home, env.uuid):
        node.registry.remove(env, keep_files=True)
        env.home.rename(staging)  # first: a half-removed home must not look like a living one
    if not staging.exists():
        return
    root = node.root(env)
    mount.umount(root)  # a clone is mounted there while its guest is given a new identity
    with suppress(OSError):
        root.rmdir()
    dismantle(staging, NoProgress())


def bury(node: Node, env: Environment, progress: Progress) -> None:
    """Remove a home that does not run and is not mounted, with its registration and its traces.

    Raises Busy (nothing was changed), StorageError.  After the rename it can only go forward:
    what fails then is finished by `repair`.
    """
    with Journal.begin(node.paths, env.uuid, "delete", to_data(env)) as journal:
        try:
            if env.home.exists():
                storage.check_unmounted(env.home)
            progress.check()
            with storage_errors(f"The private area {env.home} could not be removed"):
                _rename_away(env)
        except BaseException:
            journal.done()
            raise
        finish_burial(node, env, progress)


def _rename_away(env: Environment) -> None:
    """Commit a death; a home that is not there (an unmounted disk) leaves nothing to rename."""
    with suppress(FileNotFoundError):
        env.home.rename(grave_of(env))
        file.fsync_directory(env.home.parent)


def finish_burial(node: Node, env: Environment, progress: Progress) -> None:
    """Do all that comes after the rename; may be repeated."""
    node.registry.remove(env, keep_files=False)
    forget(node, env)
    # Not cancellable any more: the environment is gone for everybody.
    progress.stage(f"Removing {env.name}")
    dismantle(grave_of(env), NoProgress())


def forget(node: Node, env: Environment) -> None:
    """Drop what the node keeps beside the home: mount point, ids, addresses, run state."""
    with suppress(OSError):  # somebody may have put files below the mount point: they stay
        node.root(env).rmdir()
    RunState.clear(node.paths, env.uuid)
    node.id_ranges.release(env.uuid)
    network.release(node, env.uuid)


def dismantle(directory: Path, progress: Progress) -> None:
    """Remove a directory with the disks (whole or half made) of whatever driver in it."""
    if not directory.is_dir():
        return
    with storage_errors(f"{directory} could not be removed"):
        for name in storage.names():
            storage.load(name).remove(directory, progress)
        file.remove_tree(directory)


def repair(node: Node, record: Record) -> None:
    """Undo or finish what a killed verb of VERBS left, and close its record; repeatable."""
    env = from_data(record.uuid, record.data)
    log.warning("%s: cleaning up an unfinished %s", env.name, record.verb)
    if record.verb == "delete":
        if grave_of(env).exists() or not env.home.exists():
            finish_burial(node, env, NoProgress())
    else:
        abandon(node, env)
    Journal.forget(node.paths, record.uuid)


@contextmanager
def reserved(node: Node, *refs: str) -> Iterator[None]:
    """Keep the names and ids in `refs` for the length of the block.

    Raises AlreadyExists when an environment answers to one of them or is just getting it.
    """
    with ExitStack() as held:
        for ref in sorted(set(refs)):
            # A lease like any other, but of the word: it ends with its holder.
            key = str(uuid5(NAMESPACE_URL, f"pyvz:{ref}"))
            try:
                held.enter_context(Lease.take(node.paths, key, "reserving"))
            except Locked as error:
                raise AlreadyExists(f"'{ref}' is just being created by somebody else") from error
            if taken(node, ref):
                raise taken_error(ref)
        yield


def taken(node: Node, ref: str) -> bool:
    """Whether an environment answers to `ref`."""
    try:
        node.registry.resolve(ref)
    except EnvironmentNotFound:
        return False
    return True


def taken_error(ref: str) -> AlreadyExists:
    """Return the error that says that an environment answers to `ref`."""
    return AlreadyExists(f"There is a container or virtual machine '{ref}' already")


def take_ownership(node: Node, directory: Path) -> None:
    """Write that the home in `directory` belongs to this node."""
    file.write_atomic(directory / OWNER, owner_id(node) + "\n", 0o644)


def owner_id(node: Node) -> str:
    """Return the id by which this node owns containers: of the machine and the node's root."""
    try:
        machine = _MACHINE_ID.read_text().strip()
    except OSError:
        machine = os.uname().nodename
    return str(uuid5(NAMESPACE_URL, f"pyvz:{machine}:{node.paths.root}"))


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Name the OSErrors of the block: `what` begins the message."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        details = str(error.filename or "")
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpace(f"{what}: {reason}", details=details) from error
        if error.errno == errno.EBUSY:
            raise Busy(f"{what}: {reason}", details=details) from error
        raise StorageError(f"{what}: {reason}", details=details) from error


def spelled(node: Node, path: Path) -> str:
    """Return `path` as the node's own files spell it: below the node's root."""
    return "/" + os.fspath(path.relative_to(node.paths.root))


def private_of(node: Node, env: Environment) -> str:
    """Return VE_PRIVATE of `env` as ve.conf spells it."""
    head, _, last = spelled(node, env.home).rpartition("/")
    return explicit(env, f"{head}/$VEID") if last == env.uuid else f"{head}/{last}"


def explicit(env: Environment, path: str) -> str:
    """Return `path` with $VEID kept only where action scripts expand it to the same place as we.

    We put the UUID there.  Scripts source ve.conf, and VEID is the number of a container that
    has one.
    """
    return path if env.envid == env.uuid else expand_veid(path, env.uuid)


def check_free(path: Path) -> None:
    """Raise PrivateExists when something is where a new home shall be."""
    if os.path.lexists(path):
        raise PrivateExists(f"The private area {path} exists already")


def check_place(node: Node, path: Path) -> None:
    """Raise PrivateExists or BadValue when no new home may be at `path`.

    What lies in a container's own files belongs to its users.
    """
    check_free(path)
    real = Path(os.path.realpath(path))
    inside = [env.home for env in node.registry.environments()]
    for other in (*inside, node.paths.ve_root):
        if real.is_relative_to(os.path.realpath(other)):
            raise BadValue(f"{path} lies in {other} and cannot be a private area")


def to_data(env: Environment) -> dict[str, object]:
    """Return what a journal record keeps of `env`."""
    return {"envid": env.envid, "name": env.name, "kind": str(env.kind), "home": str(env.home)}


def from_data(uuid: str, data: Mapping[str, object]) -> Environment:
    """Return the environment that a journal record is about."""
    return Environment(
        uuid=uuid,
        envid=str(data["envid"]),
        name=str(data["name"]),
        kind=Kind(str(data["kind"])),
        home=Path(str(data["home"])),
    )


def _is_unborn(directory: Path, uuid: str) -> bool:
    try:
        return (directory / UNBORN).read_text() == uuid
    except OSError:
        return False
