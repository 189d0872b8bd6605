"""Backups in pull mode: QEMU serves the disks of a running machine, as they were at one moment, by
NBD to a client of somebody's choice, until he has read what he wants.

A shadow over each disk keeps what is overwritten meanwhile (vm/moment.py): in an image of our own
beside the disk, or in one that the client names, which has no name any more once it is open.  The
listening socket is made here and given to QEMU.  A checkpoint may begin at the same moment.

As with `prlctl backup` (backuplease.py) the machine can be worked in, but not be stopped in good
order, suspended, moved or rolled back; when it is killed, or vzd ends, the backup has ended.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from pyvz.errors import (
    AlreadyExists,
    BadValue,
    Cancelled,
    InvalidState,
    NotFound,
    StorageError,
    Unsupported,
)
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.model.task import Progress
from pyvz.operations import backuplease, machinedrives
from pyvz.operations.node import Node
from pyvz.store import pulls
from pyvz.store.pulls import Export, Pull, Server
from pyvz.vm import image, mirror, moment
from pyvz.vm.moment import Mark, View
from pyvz.vm.monitor import Monitor

_POLL: Final = 0.5
_LONGEST: Final = 107  # bytes of a socket's path
_KEPT: Final = ".backup"  # directory of shadows in a home; machinebackup.py removes it
_PORT: Final = 10809  # of NBD, where none is named


def under_way(node: Node, env: Environment) -> Pull | None:
    """Return what of a machine can be read just now; None when nothing can."""
    if not backuplease.under_way(node, env.uuid):
        return None
    return pulls.load(backuplease.directory(node, env.uuid))


def check(node: Node, env: Environment, pull: Pull) -> None:
    """Raise what speaks against it.

    InvalidState, NotFound, Unsupported, AlreadyExists, BadValue, StorageError.
    """
    if env.uuid not in node.machines.running():
        raise InvalidState(
            f"{env.name} does not run: QEMU exports only disks that are in use",
            hint="Read its images with qemu-nbd, or use prlctl backup.",
        )
    drives = _drives(node, env)
    for export in pull.exports:
        drive = drives.get(export.disk)
        if drive is None or not drive.is_disk:
            raise NotFound(f"{env.name} has no disk {export.disk}")
        if drive.keyid:
            raise Unsupported(
                f"{drive.name} of {env.name} is encrypted: it would be served in the clear"
            )
        _check_scratch(env, drive, export)
    path = pull.server.path
    if path and len(os.fsencode(path)) > _LONGEST:
        raise BadValue(f"The path of a socket has at most {_LONGEST} bytes: {path}")
    if path and os.path.lexists(path):
        raise AlreadyExists(f"{path} exists already: the socket of the NBD server would be there")


def _check_scratch(env: Environment, drive: Drive, export: Export) -> None:
    path = Path(export.scratch)
    if not export.scratch:
        return
    if export.reuse:
        found = image.look(path)
        image.check(found, path, "qcow2")
        if found.size < machinedrives.size_of(env, drive):
            raise StorageError(f"{path} is smaller than {drive.name} of {env.name}")
    elif os.path.lexists(path):
        raise AlreadyExists(
            f"{path} exists already", hint="--reuse-external uses an image that does."
        )


def _drives(node: Node, env: Environment) -> dict[str, Drive]:
    return {each.name: each for each in node.registry.config(env).machine.drives if each.enabled}


def begin(node: Node, env: Environment, pull: Pull, marks: Mapping[str, Mark]) -> Monitor:
    """Make it the moment and serve the disks; MARKS: bitmaps that begin at it, by disk.

    The caller holds the lease, has checked, and tidies up (machinebackup.tidy) also after an error.
    Raises MonitorError, StorageError, BadValue.
    """
    monitor, drives = node.machines.monitor(env.uuid), _drives(node, env)
    views = tuple(_view(each) for each in pull.exports)
    moment.end(monitor)  # what a killed one has left
    for view in views:
        if view.since and view.still in moment.every_bitmap(monitor.execute, view.export):
            raise BadValue(f"{view.export} of {env.name} has a bitmap '{view.still}' already")
    directory = backuplease.directory(node, env.uuid)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    pulls.save(directory, pull)
    for export in pull.exports:
        with _scratch(env, drives[export.disk], export) as descriptor:
            moment.shadow(monitor, export.disk, descriptor)
    with _listen(pull.server) as listening:
        if not pull.server.path:
            server = pull.server._replace(port=int(listening.getsockname()[1]))
            pulls.save(directory, pull._replace(server=server))
        moment.begin(monitor, views, marks)
        moment.export(monitor, listening, views)
    return monitor


def _view(export: Export) -> View:
    return View(export.disk, export.since, export.name, export.bitmap)


@contextmanager
def _scratch(env: Environment, drive: Drive, export: Export) -> Iterator[int]:
    """Have an image for the shadow of a disk open; one that is made here has no name then."""
    if export.scratch:
        path = Path(export.scratch)
    else:
        path = env.home / _KEPT / drive.name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)
    with ExitStack() as stack:
        if not export.reuse:
            image.create(path, machinedrives.size_of(env, drive))
            stack.callback(path.unlink)
        descriptor = image.open_image(path, writable=True)
        stack.callback(os.close, descriptor)
        yield descriptor


def _listen(server: Server) -> socket.socket:
    """Return the socket that the server listens at; raises StorageError."""
    if server.path:
        listening = mirror.listen(Path(server.path))
        Path(server.path).chmod(0o600)
        return listening
    if not server.port:
        with suppress(StorageError):
            return _listen(server._replace(port=_PORT))
    try:
        family, _, _, _, address = socket.getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        raise StorageError(
            f"Nothing can listen at {server.host}, port {server.port}: {error.strerror or error}"
        ) from error


def wait(env: Environment, monitor: Monitor, pull: Pull, progress: Progress) -> None:
    """Serve until it is called off, which is how it ends well; raises StorageError, NotRunning."""
    disks = {each.disk for each in pull.exports}
    with suppress(Cancelled):
        progress.stage(f"The disks of {env.name} can be read")
        while not monitor.ended.wait(_POLL):
            progress.check()
            if disks - moment.shadows(monitor):
                raise StorageError(f"The moment of the backup of {env.name} could not be kept")
        raise StorageError(f"{env.name} has stopped while it was being backed up")
