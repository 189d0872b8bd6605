"""A home goes to another place of the node.

On one file system it is a rename.  Else it is copied to `.create-<uuid>` beside the new place,
flushed, compared, and renamed to its name; only then the old one is given up (`.delete-<uuid>`)
and removed.

The transfer commits when the registration leads to the new place.  What fails before it is undone
at once.  After a death `repair` goes forward when the new home has its name (it is whole then),
else it removes the copy.  The caller holds the lease.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from pyvz.errors import ConfigError, StorageError
from pyvz.linux import file, mount, run, treecompare
from pyvz.model.conffile import ConfFile
from pyvz.model.environment import Environment, Kind
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import dump, home
from pyvz.operations.follow import SCRATCH
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.store.journal import Journal, Record

log = logging.getLogger(__name__)

VERB = "move"
_NOTHING: Mapping[str, object] = {}


def transfer(
    node: Node,
    old: Environment,
    new: Environment,
    progress: Progress,
    *,
    fill: Callable[[Path], None] | None = None,
    more: Mapping[str, object] = _NOTHING,
) -> None:
    """Take the home of `old` to that of `new` (the same environment, another place).

    fill: makes the copy, compared, in the directory that it is given (None: we do).  more: what the
    record holds besides (dump.carried: its memory is taken along).

    Raises StorageError, PrivateExists, NoSpace, Cancelled: nothing has changed then.
    """
    conf = node.registry.conf_file(old)
    data = home.to_data(old) | {"to": os.fspath(new.home)} | dict(more)
    with Journal.begin(node.paths, old.uuid, VERB, data) as journal:
        try:
            with home.storage_errors(f"{old.home} could not be moved to {new.home}"):
                _commit(node, (old, new), conf, fill, progress)
        except BaseException:
            if _is_as_before(node, old, new):
                journal.done()
            raise
        _give_up(old)


def _commit(
    node: Node,
    both: tuple[Environment, Environment],
    conf: ConfFile,
    fill: Callable[[Path], None] | None,
    progress: Progress,
) -> None:
    """Do all until the new place is the true one, or nothing."""
    old, new = both
    with ExitStack() as undo:
        new.home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if fill is not None or not same_file_system(old.home, new.home.parent):
            undo.callback(home.dismantle, home.staging_of(new), NoProgress())
            if fill is None:
                copy(node, old, home.staging_of(new), progress)
            else:
                fill(home.staging_of(new))
        progress.check()
        undo.callback(_enrol, node, old, conf)
        _place(old, new, undo)
        _enrol(node, new, conf)
        undo.pop_all()


def _is_as_before(node: Node, old: Environment, new: Environment) -> bool:
    """Whether nothing is left of a transfer that failed (else its record is still needed)."""
    link = node.registry.config_path(old)
    there = os.path.realpath(link) == os.path.realpath(old.conf)
    return there and old.home.exists() and not home.staging_of(new).exists()


def repair(node: Node, record: Record) -> None:
    """Finish or undo a transfer that was killed, and close its record; repeatable."""
    old = home.from_data(record.uuid, record.data)
    new = old._replace(home=Path(str(record.data["to"])))
    log.warning("%s: cleaning up an unfinished move to %s", old.name, new.home)
    _unverify(node, old)
    if "target" in record.data:
        dump.repair_carried(node, old, record)
    conf = _conf_of(new)
    if conf is not None:
        _enrol(node, new, conf)
        _give_up(old)
    elif (former := _conf_of(old)) is not None:
        _enrol(node, old, former)
    home.dismantle(home.staging_of(new), NoProgress())
    file.remove_tree(old.home / SCRATCH)
    Journal.forget(node.paths, record.uuid)


def same_file_system(old: Path, parent: Path) -> bool:
    """Whether a rename from one to the other can work; the directory's device decides."""
    return old.stat().st_dev == parent.stat().st_dev


def copy(node: Node, old: Environment, staging: Path, progress: Progress) -> None:
    """Make a copy of a home that nobody uses in `staging`, flushed and compared."""
    _copy(old, staging, progress)
    _verify(node, old, staging, progress)


def _copy(old: Environment, staging: Path, progress: Progress) -> None:
    """Copy the home to `staging` and flush it; the disk by its driver, the rest file by file."""
    staging.mkdir(mode=0o700)
    drivers = [storage.load(name) for name in storage.names()]
    for driver in drivers:
        if driver.present(old.home):
            driver.clone(old.home, staging, progress)
    theirs = {entry.name for entry in os.scandir(staging)}
    for entry in sorted(os.scandir(old.home), key=lambda entry: entry.name):
        if entry.name not in theirs:
            run.run(["cp", "-a", "--", entry.path, staging], timeout=None, poll=progress.check)
    missing = {path.name for path in old.home.iterdir()} - {path.name for path in staging.iterdir()}
    if missing:
        raise StorageError(f"The copy of {old.home} is incomplete", details="\n".join(missing))
    progress.stage("Writing to disk")
    file.syncfs(staging)


def _verify(node: Node, old: Environment, staging: Path, progress: Progress) -> None:
    """Raise StorageError when the copy of the disk is not equal, as its users would see it."""
    driver = next((d for d in map(storage.load, storage.names()) if d.present(old.home)), None)
    if driver is None:
        return
    progress.stage("Comparing the copy")
    views = _views(node, old)
    both = tuple(zip((old.home, staging), views, strict=True))
    try:
        for directory, place in both:
            driver.mount(directory, place, readonly=True)
        found = treecompare.compare(*views, progress)
        for directory, place in both:
            driver.umount(directory, place)
    finally:
        _unverify(node, old)
    if found.difference:
        raise StorageError(
            f"The copy of {old.home} is not equal to it",
            details=found.difference,
            hint="Nothing was changed: look at the disks.",
        )


def _views(node: Node, env: Environment) -> tuple[Path, Path]:
    """Return where the disk and its copy are mounted to be compared."""
    return node.paths.aside / f"{env.uuid}.old", node.paths.aside / f"{env.uuid}.new"


def _unverify(node: Node, env: Environment) -> None:
    """Take away the mounts of a comparison; devices below clear themselves.  Idempotent."""
    for place in _views(node, env):
        mount.umount(place, timeout=30.0)
        with suppress(FileNotFoundError):
            place.rmdir()


def _place(old: Environment, new: Environment, undo: ExitStack) -> None:
    """Give the new home its name."""
    home.check_free(new.home)
    staging = home.staging_of(new)
    if staging.exists():
        staging.rename(new.home)
        # Renamed before it is removed: what has its name is whole.
        undo.callback(new.home.rename, staging)
    else:
        try:
            old.home.rename(new.home)
        except OSError as error:
            if error.errno == errno.EXDEV:  # two mounts of one file system
                raise StorageError(f"{old.home} and {new.home} are different mounts") from error
            raise
        undo.callback(new.home.rename, old.home)
    file.fsync_directory(new.home.parent)


def _enrol(node: Node, env: Environment, conf: ConfFile) -> None:
    """Have the registration lead to `env.home`; there already: nothing happens."""
    conf = conf.copy()
    machine = env.kind == Kind.VM
    conf.set("VE_PRIVATE", os.fspath(env.home) if machine else home.private_of(node, env))
    link = node.registry.config_path(env)
    if os.path.realpath(link) == os.path.realpath(env.conf):
        node.registry.save(env, conf)
        return
    node.registry.remove(env, keep_files=True)
    node.registry.add(env, conf)


def _give_up(old: Environment) -> None:
    """Remove what is left at the old place, if anything."""
    with home.storage_errors(f"{old.home} could not be removed"), suppress(FileNotFoundError):
        old.home.rename(home.grave_of(old))
    home.dismantle(home.grave_of(old), NoProgress())


def _conf_of(env: Environment) -> ConfFile | None:
    """Return the configuration in `env.home` when it is that of `env`."""
    try:
        conf = ConfFile.parse(file.read_text_limited(env.conf))
    except (OSError, ConfigError):
        return None
    return conf if conf.get("UUID") == env.uuid else None
