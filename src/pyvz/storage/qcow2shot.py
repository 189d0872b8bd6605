"""Snapshots of one qcow2 disk: inside the image, or of the thin ploop disk on which it stands."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pyvz.errors import (
    AlreadyExists,
    AlreadyMounted,
    Busy,
    InvalidState,
    NotFound,
    Timeout,
    VZError,
)
from pyvz.image import qcow2
from pyvz.linux import file, filesystem, mount, syscall
from pyvz.storage import ploopdisk, qcow2adopt, qcow2size, qcow2stack
from pyvz.storage.daemon import NODE
from pyvz.storage.qcow2disk import Disk, discard, empty, spaceless


def take(disk: Disk, guid: str) -> None:
    """Keep the state of now; a mounted disk is frozen for that.  Raises AlreadyExists, Timeout."""
    with spaceless(disk.path), disk.locked():
        if any(each.name == guid for each in disk.snapshots()) or disk.shot(guid):
            raise AlreadyExists(f"there is a snapshot {guid} already")
        places = disk.mounted()
        if not places:
            disk.check_idle()
            disk.make_whole()
            disk.change("snapshot", "-q", "-c", guid, disk.image)
            return
        what = {"device": NODE, "name": guid}
        try:
            with still(places[0].target):
                disk.daemon.flush()
                disk.daemon.execute("blockdev-snapshot-internal-sync", what)
        except Timeout:  # it has seen writes, or may come yet
            with contextlib.suppress(VZError):
                disk.daemon.execute("blockdev-snapshot-delete-internal-sync", what)
            raise


def switch(disk: Disk, guid: str) -> None:
    """Refer to what the snapshot refers to; the disk keeps its size.  Raises NotFound, Busy."""
    with spaceless(disk.path), disk.locked():
        disk.check_idle()
        if shot := disk.shot(guid):
            _stand_on(disk, shot)
            return
        size = qcow2.require(disk.image).now.size
        _known(disk, guid)
        disk.make_whole()
        disk.change("snapshot", "-q", "-a", guid, disk.image)
        if qcow2.require(disk.image).now.size < size:
            qcow2size.grow(disk, size)


def _stand_on(disk: Disk, stack: qcow2stack.Stack) -> None:
    """Begin anew above a snapshot of the ploop disk below; what was written since is lost."""
    if disk.snapshots():
        raise InvalidState(
            f"{disk.path} has snapshots that were made later, which would be lost",
            hint="Delete them, or bring the disk back: prlctl convert CT --layout ploop.",
        )
    size = qcow2.require(disk.image).now.size
    new = empty(disk.path.with_name(f"{disk.path.name}.new"))
    try:
        with new.locked():
            qcow2adopt.put_above(new, stack)
            qcow2size.grow(new, size)
        syscall.exchange(new.path, disk.path)
        file.fsync_directory(disk.path.parent)
    finally:
        discard(new)


def delete(disk: Disk, guid: str) -> None:
    """Take it out of the image; what only it had becomes free.  Raises NotFound, Busy."""
    with disk.locked():
        if disk.shot(guid):
            raise InvalidState(
                f"The snapshot {guid} is in the ploop disk below and cannot be deleted there",
                hint="Bring it back first: prlctl convert CT --layout ploop.",
            )
        _known(disk, guid)
        view = disk.view(guid)
        if view.mounted():
            raise Busy(f"The snapshot {guid} is mounted", hint="Unmount it first.")
        view.finish()
        if disk.mounted():
            what = {"device": NODE, "name": guid}
            disk.daemon.execute("blockdev-snapshot-delete-internal-sync", what)
            return
        disk.check_idle()
        disk.make_whole()
        disk.change("snapshot", "-q", "-d", guid, disk.image)


def mount_at(disk: Disk, guid: str, target: Path) -> None:
    """Show it by a daemon of its own and mount it read-only.  Raises NotFound, AlreadyMounted."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    with disk.locked():
        if mount.is_mount_point(target):
            raise AlreadyMounted(f"Something is mounted on {target} already")
        _known(disk, guid)
        if (view := disk.view(guid)).mounted():
            raise AlreadyMounted(f"The snapshot {guid} is mounted already")
        with view.shown() as (loop, kind):
            options = ploopdisk.unreplayed(kind)
            mounted = filesystem.mount_detached(loop.device, kind, readonly=True, options=options)
            ploopdisk.place(mounted, target)


def umount(disk: Disk, guid: str, target: Path) -> None:
    """Unmount it and end its daemon; raises NotFound, Busy."""
    with disk.locked():
        _known(disk, guid)
        mount.umount(target)
        disk.view(guid).finish()


def changed(disk: Disk, since: str, until: str | None) -> list[tuple[int, int]]:
    """Compare to which clusters both refer; until: None for the disk as it is now."""
    with disk.locked(), contextlib.ExitStack() as held:
        places = disk.mounted()
        if until is None and places:
            held.enter_context(still(places[0].target))
            disk.daemon.flush()
        with qcow2.image(disk.image) as image:
            return image.changed(*(image.state(name) for name in (since, until)))


@contextlib.contextmanager
def reading(disk: Disk, guid: str) -> Iterator[tuple[Path, int, int]]:
    """Show it by a daemon of its own as a raw file: (file, offset, size)."""
    with disk.locked():
        _known(disk, guid)
        serving = contextlib.ExitStack()
        shown = serving.enter_context(disk.view(guid).served())
    with serving:
        yield shown, 0, shown.stat().st_size


def _known(disk: Disk, guid: str) -> None:
    if not (disk.shot(guid) or any(each.name == guid for each in disk.snapshots())):
        raise NotFound(f"there is no snapshot {guid}")


@contextlib.contextmanager
def still(target: str) -> Iterator[None]:
    """Keep a mounted disk from being written to for the block; all before is on it."""
    with (
        ploopdisk.directory(target) as mounted,
        filesystem.frozen(mounted, ploopdisk.SNAPSHOT_TIMEOUT),
    ):
        yield


@contextlib.contextmanager
def opened(disk: Disk) -> Iterator[int]:
    """Yield the root of the disk's file system; not mounted: it is, nowhere in the tree."""
    places = disk.mounted()
    if places:
        with ploopdisk.directory(places[0].target) as mounted:
            yield mounted
        return
    disk.check_idle()
    with disk.device() as (loop, kind):
        mounted = filesystem.mount_mortal(loop.device, kind)
        try:
            yield mounted
        finally:
            os.close(mounted)
