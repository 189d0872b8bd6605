"""A disk that arrives from another node, in a thread of its own: round by round.

    whole    everything is written: it can be mounted
    finish   and on the disk

A round is written to the disk (fdatasync, syncfs) in another thread while the next one comes, so
that nobody waits for it who only wants to read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from pyvz.errors import MigrationError, ProtocolError
from pyvz.linux import mount, syscall
from pyvz.migration import blocks, stream, tree
from pyvz.migration.offer import HOME, IMAGE, STREAM, DiskOffer
from pyvz.migration.wire import Channel
from pyvz.model.environment import Environment
from pyvz.model.task import NoProgress
from pyvz.operations import arrival, ground, home
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.storage import shots as shotimages

DATA_TIMEOUT: Final = 7 * 86400.0  # between rounds; a dead connection is seen at once
JOIN_TIMEOUT: Final = 3600.0  # for the last round to be written


class Incoming:
    """One disk.  live: of one that arrives with its memory, whose home has its place already."""

    def __init__(
        self, node: Node, env: Environment, disk: DiskOffer, channel: Channel, *, live: bool
    ) -> None:
        self._node = node
        self._env = env
        self._live = live
        self.disk = disk
        self._channel = channel
        self._home = env.home if live else home.staging_of(env)
        self._whole = threading.Event()
        self._flusher = _Flusher()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"disk-{disk.name}", daemon=True)

    @property
    def early(self) -> bool:
        """Whether the root can be mounted while data still comes."""
        return self.disk.form not in {IMAGE, STREAM}

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def whole(self) -> None:
        """Wait until everything is written, if not on the disk yet; raises what went wrong."""
        if not self._whole.wait(JOIN_TIMEOUT):
            raise MigrationError(f"The disk {self.disk.name} was not written in time")
        self.failed()

    def finish(self) -> None:
        """Wait until it is on the disk; raises what went wrong."""
        self._thread.join(JOIN_TIMEOUT)
        if self._thread.is_alive():
            raise MigrationError(f"The disk {self.disk.name} was not written in time")
        self.failed()

    def failed(self) -> None:
        """Raise what went wrong, if something did."""
        if isinstance(self._error, OSError):
            with home.storage_errors(f"The disk {self.disk.name} could not be written"):
                raise self._error
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End it, whole or not."""
        if self._thread.is_alive():
            self._channel.abandon()
            self._thread.join(JOIN_TIMEOUT)

    def _run(self) -> None:
        try:
            self._receive()
        except Exception as error:  # noqa: BLE001  told by finish()
            self._error = error
            self._channel.refuse()
        finally:
            self._whole.set()

    def _receive(self) -> None:
        with self._flusher:
            if self.disk.form == IMAGE:
                self._image()
            elif self.disk.form == HOME:
                for _ in tree.receive(self._channel, self._home, DATA_TIMEOUT):
                    pass
            elif self.disk.form == STREAM:
                self._streams()
            else:
                self._tree()

    def _image(self) -> None:
        size = self.disk.size
        if size is None:
            raise ProtocolError("An image has no size")

        shots = self.disk.shots
        what = (self._channel, size)

        def fill(fd: int, offset: int) -> None:
            for _ in _rounds(what, fd, offset):
                self._flusher.flush(fd, os.fdatasync)

        def fill_shots(fd: int, offset: int, keep: Callable[[], None]) -> None:
            for number in _rounds(what, fd, offset):
                if number < len(shots.images):
                    keep()
                else:
                    self._flusher.flush(fd, os.fdatasync)

        driver = storage.load(self.disk.driver)
        if not shots.images:
            driver.restore_image(self._home, size, fill, disk=self.disk.name)
        elif images := shotimages.of(driver, self._home):
            images.restore_shots(self._home, (size, shots), fill_shots, disk=self.disk.name)
        else:
            raise ProtocolError("Snapshots came for a disk that cannot have them so")
        self._whole.set()

    def _streams(self) -> None:
        driver = storage.load(self.disk.driver)
        with ExitStack() as opened, driver.receive_streams(self._home, self.disk.size) as sink:
            fd = os.open(self._home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            coming = stream.Receiver(self._channel, DATA_TIMEOUT)
            for _ in coming.rounds():
                sink.take(coming.feed)
                self._flusher.flush(fd, syscall.syncfs)
            self._flusher.wait()
        self._whole.set()

    def _tree(self) -> None:
        driver = storage.load(self.disk.driver)
        driver.create(self._home, size=self.disk.size, source=None, progress=NoProgress())
        with ExitStack() as stack:
            root = self._mounted(driver, stack)
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with ExitStack() as opened:
                opened.callback(os.close, fd)
                for _ in tree.receive(self._channel, root, DATA_TIMEOUT):
                    self._flusher.flush(fd, syscall.syncfs)
                self._whole.set()
                self._flusher.wait()

    def _mounted(self, driver: storage.StorageDriver, stack: ExitStack) -> Path:
        """Mount the root: where it is to be at once, or aside, until STACK ends."""
        node, env = self._node, self._env
        if self._live:
            with ExitStack() as undo:
                ground.mount_root(node, env, undo)
                undo.pop_all()
            return node.root(env)
        root = arrival.place_of(node, env.uuid)
        driver.mount(self._home, root)
        stack.callback(root.rmdir)
        stack.callback(mount.umount, root)
        stack.callback(driver.umount, self._home, root)
        return root


def _rounds(what: tuple[Channel, int], fd: int, offset: int) -> Iterator[int]:
    channel, size = what
    return blocks.receive(channel, fd, offset, size, DATA_TIMEOUT)


class _Flusher:
    """Writes to the disk beside, once at a time; a context manager that waits for the last one."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> _Flusher:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.wait()
        except OSError:
            if kind is None:
                raise

    def flush(self, fd: int, how: Callable[[int], None]) -> None:
        """Begin to write what was changed until now, of the file or the file system of `fd`."""
        self.wait()
        copy = os.dup(fd)
        self._thread = threading.Thread(target=self._run, args=(copy, how), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until it is on the disk; raises OSError."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, fd: int, how: Callable[[int], None]) -> None:
        try:
            how(fd)
        except OSError as error:
            self._error = error
        finally:
            os.close(fd)
