"""The memory of an environment in a file of somebody's choice (libvirt's save and restore).

    FILE    a tar archive: pyvz.json (Header), dump/...: the saved state as a home has it
    FILE.new                being written
    <home>/dump/.restored/  being read

It is suspended first, and its state is then taken into the file and away from the home; restoring
puts it there again and resumes.  So whatever dies in between leaves an environment that runs, or is
suspended.  Whoever can write the file decides what runs afterwards, as root for a container: it has
to belong to root alone.  The disks are not in it; they have to be as they were left.
"""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final, NamedTuple, cast

from pyvz.errors import (
    EnvironmentNotFound,
    InvalidState,
    NotFound,
    RestoreError,
    StorageError,
    VZError,
)
from pyvz.linux import file
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.model.task import Progress
from pyvz.operations import dump, home, lifecycle, machinestate, provision, suspend
from pyvz.operations.node import Node

_HEADER: Final = "pyvz.json"
_FORMAT: Final = 1
_MOST_HEADER: Final = 8 << 20
_MOST_MEMBERS: Final = 100_000
_BLOCK: Final = 1 << 20
_DUMP: Final = "dump"
_RESTORED: Final = ".restored"
_LAST: Final = "Dump"  # with it the environment is suspended: it appears last


class Header(NamedTuple):
    """What a file is of.  about: what it was then, in the words of who saved it; size: bytes.

    paused: it stands still when it is restored.
    """

    uuid: str
    name: str
    kind: str
    paused: bool
    size: int
    about: str = ""


def save(
    node: Node,
    ref: str,
    path: Path,
    progress: Progress,
    *,
    about: str = "",
    paused: bool | None = None,
) -> None:
    """Write the memory of a running environment to PATH and end it; a file there is replaced.

    paused: whether it stands still when it is restored; None: if it does now.
    Raises as `suspend`, NoSpace, StorageError: it goes on then.
    """
    env = node.registry.resolve(ref)
    if not path.parent.is_dir():
        raise NotFound(f"There is no directory {path.parent}")
    was = node.status(env) == Status.PAUSED
    still = was if paused is None else paused
    suspend.suspend(node, env.uuid, progress=progress)
    try:
        with (
            node.lease(env, "save"),
            home.storage_errors(f"The state of {env.name} could not be written"),
        ):
            _require(node, env, Status.SUSPENDED)
            progress.stage(f"Writing {path}")
            header = Header(env.uuid, env.name, env.kind.value, still, _size(env), about)
            _write(env, header, path, progress)
            forget(env)
    except BaseException:
        _go_on(node, env, paused=was)
        raise


def _go_on(node: Node, env: Environment, *, paused: bool) -> None:
    with suppress(VZError):
        lifecycle.start(node, env.uuid)
        if paused:
            lifecycle.pause(node, env.uuid)


def _require(node: Node, env: Environment, needs: Status) -> None:
    if (status := node.status(env)) != needs:
        raise InvalidState(f"{env.name} is {status.value} and not {needs.value}")


def forget(env: Environment) -> None:
    """Take the saved state of a suspended environment away from its home; the lease is held."""
    if env.kind == Kind.VM:
        machinestate.forget(env)
    else:
        dump.drop(env)


def _files(env: Environment) -> list[Path]:
    """Return the files of its saved state, by their names."""
    place = env.home / _DUMP
    found = [place / _LAST] if (place / _LAST).is_file() else sorted((place / _LAST).iterdir())
    layout = place / f"{_LAST}.json"
    return [layout, *found] if layout.exists() else found


def _size(env: Environment) -> int:
    return sum(each.stat().st_size for each in _files(env))


class _Counted:
    """An open file that tells how much was read of it."""

    def __init__(self, opened: IO[bytes], progress: Progress, total: int) -> None:
        self._opened, self._progress, self._total = opened, progress, total
        self.done = 0

    def read(self, size: int = -1) -> bytes:
        """Read on; raises Cancelled."""
        data = self._opened.read(size)
        self.done += len(data)
        self._progress.advance(min(self.done, self._total), self._total)
        return data


def _write(env: Environment, header: Header, path: Path, progress: Progress) -> None:
    """Write the file under another name, and give it its own when it is on the disk."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with ExitStack() as failed:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        failed.callback(fresh.unlink)
        with os.fdopen(descriptor, "wb") as out:
            _archive(env, header, out, progress)
            out.flush()
            os.fsync(out.fileno())
        fresh.rename(path)
        failed.pop_all()
    file.fsync_directory(path.parent)


def _archive(env: Environment, header: Header, out: IO[bytes], progress: Progress) -> None:
    done = 0
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        text = json.dumps({"format": _FORMAT} | header._asdict()).encode()
        _add(archive, _HEADER, len(text), io.BytesIO(text))
        for each in _files(env):
            with each.open("rb") as opened:
                counted = _Counted(opened, progress, header.size)
                counted.done = done
                name = os.fspath(each.relative_to(env.home))
                _add(archive, name, os.fstat(opened.fileno()).st_size, counted)
                done = counted.done


def _add(archive: tarfile.TarFile, name: str, size: int, opened: IO[bytes] | _Counted) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    archive.addfile(member, cast(IO[bytes], opened))  # it only reads


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Header, tarfile.TarFile]]:
    """Have a file open behind its header; raises RestoreError, NotFound, StorageError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid or found.st_mode & 0o022:
            raise StorageError(
                f"{path} is refused: others than root can write what would run on this node",
                hint="It has to be a file of root, which only root can write.",
            )
        try:
            with tarfile.open(fileobj=opened, mode="r|") as archive:
                yield _header(archive), archive
        except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
            raise RestoreError(f"{path} is no saved state, or a torn one: {error}") from error


def _header(archive: tarfile.TarFile) -> Header:
    member = archive.next()
    if member is None or member.name != _HEADER or member.size > _MOST_HEADER:
        raise ValueError("it does not begin as one")
    opened = archive.extractfile(member)
    if opened is None:
        raise ValueError("it does not begin as one")
    data = json.loads(opened.read())
    if data.pop("format") != _FORMAT:
        raise ValueError("it is of another version")
    header = Header(**data)
    texts = (header.uuid, header.name, header.kind, header.about)
    if not all(isinstance(each, str) for each in texts) or not isinstance(header.size, int):
        raise ValueError("its header makes no sense")
    return header


def look(path: Path) -> Header:
    """Return what a file is of; raises NotFound, StorageError, RestoreError."""
    with _opened(path) as (header, _):
        return header


def restore(node: Node, path: Path, progress: Progress, *, paused: bool | None = None) -> None:
    """Bring back the environment of which PATH is the memory; the file stays.

    paused: it stands still afterwards; None: as it was told when it was saved.
    Raises NotFound, InvalidState, RestoreError, NoSpace: it is stopped as it was.
    """
    with _opened(path) as (header, archive):
        try:
            env = node.registry.resolve(header.uuid)
        except EnvironmentNotFound as error:
            raise NotFound(
                f"{path} is the state of {header.name}, which is not registered on this node",
                hint="Register it, with the disks as they were, and restore it then.",
            ) from error
        with (
            node.lease(env, "restore"),
            home.storage_errors(f"The state of {env.name} could not be read"),
        ):
            provision.repair(node, env)
            _require(node, env, Status.STOPPED)
            progress.stage(f"Reading {path}")
            _put_in(env, header, archive, progress)
    try:
        lifecycle.start(node, env.uuid, progress=progress)
    except BaseException:
        with node.lease(env, "restore"):
            forget(env)
        raise
    if header.paused if paused is None else paused:
        lifecycle.pause(node, env.uuid)


def _put_in(env: Environment, header: Header, archive: tarfile.TarFile, progress: Progress) -> None:
    """Make the state of a file that of a suspended environment."""
    if header.kind != env.kind.value:
        raise RestoreError(f"{env.name} is another kind of environment than the one that was saved")
    place = env.home / _DUMP
    work = place / _RESTORED
    file.remove_tree(work)
    work.mkdir(mode=0o700, parents=True)
    with ExitStack() as stack:
        stack.callback(file.remove_tree, work)
        _unpack(archive, work, header.size, progress)
        if not (work / _LAST).exists():
            raise RestoreError("There is no memory in it")
        file.syncfs(work)
        # What is there is void: the environment was not suspended.
        for each in sorted(work.iterdir(), key=lambda entry: entry.name == _LAST):
            each.rename(place / each.name)
        file.fsync_directory(place)


def _unpack(archive: tarfile.TarFile, work: Path, total: int, progress: Progress) -> None:
    """Write what follows the header; only plain files, with names as a saved state has them."""
    done = number = 0
    while (member := archive.next()) is not None:
        number += 1
        parts = Path(member.name).parts
        names = ".." not in parts and parts[:1] == (_DUMP,) and 2 <= len(parts) <= 3
        if not member.isreg() or not names or number > _MOST_MEMBERS:
            raise ValueError(f"it has a part '{member.name[:80]}'")
        source = archive.extractfile(member)
        target = work.joinpath(*parts[1:])
        target.parent.mkdir(mode=0o700, exist_ok=True)
        with target.open("xb") as out:
            while source is not None and (data := source.read(_BLOCK)):
                out.write(data)
                done += len(data)
                progress.advance(min(done, total), total)
        target.chmod(0o600)
    if done != total:  # a tar that is torn between two of its blocks does not say so
        raise ValueError(f"{done} bytes of {total} are there")
