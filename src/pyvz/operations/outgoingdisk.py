"""How one disk is sent to another node, round by round: by its image, snapshots, streams or files.

Copies     an image is copied by reflink at one moment (its file system is frozen for that) and
           read from the copy; a later round sends what differs between two copies
Shots      a disk that keeps snapshots inside itself is read at one of its own, which nobody is
           told of; a later round sends the blocks that changed between two
Streams    the driver writes down what there is, then what has changed (btrfs send; an overlay's
           layers)
Files      a tree is read where it is mounted, or parts of a home as they are
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Final, Protocol

from pyvz.errors import MigrationError
from pyvz.linux.extents import Range
from pyvz.migration import blocks, stream, tree
from pyvz.migration.offer import DiskOffer
from pyvz.migration.wire import Channel
from pyvz.model.environment import Environment
from pyvz.model.task import Progress
from pyvz.operations import home, ownshot
from pyvz.storage import base as storage

COPIES: Final = ".migrate"  # in the home; a copy that is open has no name any more
SHOTS: Final = (  # a round's, the next one's, and so on in turn
    "{70797a76-0000-4d69-8000-000000000000}",
    "{70797a76-0000-4d69-8000-000000000001}",
)


class Sender(Protocol):
    """One disk on its way out."""

    def size(self) -> int | None:
        """Return the size that the other side is to make, None without one."""

    def arm(self) -> None:
        """Have the next round, of one that runs, begin at once when it is sent."""

    def still(self) -> None:
        """It stands still: do now what freezes its file system, before CRIU looks at it.

        While a file system is being frozen or thawed (s_umount is held) the kernel does not say on
        which file an inotify watch is (show_mark_fhandle() in fs/notify/fdinfo.c, since 6.18 and in
        updates of older ones), and CRIU gives up.
        """

    def send(self, *, still: bool, progress: Progress) -> int:
        """Send one round; returns its bytes.  still: nothing changes any more."""

    def finish(self) -> None:
        """Say that all was sent."""


class Images:
    """What Copies and Shots have in common: a disk as blocks."""

    def __init__(self, env: Environment, disk: str, channel: Channel, stack: ExitStack) -> None:
        self._env, self._disk, self._stack = env, disk, stack
        self._driver = storage.find(env.home)
        self._sender = blocks.Sender(channel)
        self._before: blocks.Image | None = None
        self._size: int | None = None

    def arm(self) -> None:
        """Nothing can be begun before the moment comes."""

    def finish(self) -> None:
        """Say how long the disk is."""
        self._sender.finish(self._before.size if self._before else 0)

    def _check(self, image: blocks.Image) -> None:
        if self._size not in {None, image.size}:
            raise MigrationError(f"The disk {self._disk} was resized meanwhile")
        self._size = image.size


class Copies(Images):
    """A disk that is one image, and so is each of its snapshots, which go first."""

    def __init__(
        self, env: Environment, disk: DiskOffer, channel: Channel, stack: ExitStack
    ) -> None:
        super().__init__(env, disk.name, channel, stack)
        self._shots = [shot.guid for shot in disk.shots.images]
        self._shown = stack.enter_context(ExitStack())
        self._next: blocks.Image | None = None
        self._number = 0

    def size(self) -> int:
        """Return that of the first copy."""
        self._next = self._copy()
        return self._next.size

    def still(self) -> None:
        """Take the copy."""
        self._next = self._copy()

    def send(self, *, still: bool, progress: Progress) -> int:
        """Send what differs from the copy before; in the first round the snapshots before it."""
        del still
        ahead = self._send_shots(progress)
        image = self._next or self._copy()
        self._next = None
        self._check(image)
        self._sender.send(image, self._before, progress)
        self._before = image
        self._shown.close()
        return ahead + self._sender.last

    def _send_shots(self, progress: Progress) -> int:
        """Send each as what differs from the one before."""
        amount = 0
        while self._shots:
            place = self._driver.read_snapshot(self._env.home, self._shots[0], disk=self._disk)
            image = self._shown.enter_context(blocks.opened(*self._shown.enter_context(place)))
            self._sender.send(image, self._before, progress)
            self._before = image
            amount += self._sender.last
            del self._shots[0]
        return amount

    def _copy(self) -> blocks.Image:
        """Copy the image as it is at this moment.

        Open, the copy needs no name any more: whoever is killed leaves nothing.
        """
        directory = self._env.home / COPIES
        directory.mkdir(mode=0o700, exist_ok=True)
        self._number += 1
        path = directory / f"{self._disk}.{self._number}"
        with home.storage_errors(f"The disk {self._disk} could not be copied"):
            offset, size = self._driver.copy_image(self._env.home, path, disk=self._disk)
        try:
            return self._stack.enter_context(blocks.opened(path, offset, size))
        finally:
            path.unlink()


class Shots(Images):
    """A disk with snapshots inside, which go first; `ownshot` removes ours after a death."""

    def __init__(
        self, env: Environment, disk: DiskOffer, channel: Channel, stack: ExitStack
    ) -> None:
        super().__init__(env, disk.name, channel, stack)
        self._ahead = [shot.guid for shot in disk.shots.images]
        self._last = ""  # the snapshot that was sent last
        self._number = 0
        self._taken = False  # the next snapshot is there already
        name = disk.name
        ownshot.forget_one(self._driver, env.home, name, SHOTS)  # of one that was killed
        stack.callback(ownshot.forget_one, self._driver, env.home, name, SHOTS)

    def size(self) -> int:
        """Return that of the disk."""
        return storage.many_disks(self._driver, self._env.home).size(
            self._env.home, disk=self._disk
        )

    def still(self) -> None:
        """Take the snapshot."""
        with home.storage_errors(f"The disk {self._disk} could not be read"):
            self._driver.snapshot(self._env.home, SHOTS[self._number % 2], disk=self._disk)
        self._taken = True

    def send(self, *, still: bool, progress: Progress) -> int:
        """Send what was written since the snapshot before, which goes then."""
        del still
        amount = 0
        while self._ahead:
            self._before = self._sent(self._ahead[0], progress)
            amount += self._sender.last
            del self._ahead[0]
        if not self._taken:
            self.still()
        self._taken = False
        self._before = self._sent(SHOTS[self._number % 2], progress)
        before = SHOTS[(self._number + 1) % 2]
        with home.storage_errors(f"The disk {self._disk} could not be read"):
            ownshot.forget_one(self._driver, self._env.home, self._disk, (before,))
        self._number += 1
        return amount + self._sender.last

    def _sent(self, guid: str, progress: Progress) -> blocks.Image:
        """Send what the disk was at a snapshot, by what differs from the one sent before."""
        where, name, last = self._env.home, self._disk, self._last
        with (
            home.storage_errors(f"The disk {name} could not be read"),
            self._driver.read_snapshot(where, guid, disk=name) as place,
            blocks.opened(*place) as image,
        ):
            if guid in SHOTS:
                self._check(image)
            if last:
                told = self._driver.changed(where, last, guid, disk=name)
                ranges = [Range(*each) for each in told]
            else:
                ranges = blocks.everything(image)
            self._sender.send_ranges(image, ranges, progress, fresh=not last)
        self._last = guid
        return image


class Streams:
    """A disk that its file system writes down itself."""

    def __init__(
        self, env: Environment, limit: int | None, channel: Channel, stack: ExitStack
    ) -> None:
        self._name, self._limit = env.name, limit
        driver = storage.find(env.home)
        self._source = stack.enter_context(driver.send_streams(env.home))
        self._sender = stream.Sender(channel)

    def size(self) -> int | None:
        """Return the limit of the disk."""
        return self._limit

    def arm(self) -> None:
        """Have what writes the disk down be ready."""
        self._source.arm()

    def still(self) -> None:
        """Nothing is frozen for a round."""

    def send(self, *, still: bool, progress: Progress) -> int:
        """Send what has changed since the round before; in the first one the snapshots, too."""
        total = 0
        with home.storage_errors(f"The disk of {self._name} could not be written down"):
            for each in self._source.round(still=still):
                with each as pipe:
                    self._sender.send(pipe, progress)
                self._sender.complete()
                total += self._sender.last
        return total

    def finish(self) -> None:
        """Say that all was sent."""
        self._sender.finish()


class Files:
    """A tree that `shown` yields, or names in a directory."""

    def __init__(
        self,
        disk: DiskOffer,
        sender: tree.Sender,
        shown: Callable[[], AbstractContextManager[Path]],
        names: tuple[str, ...] = (".",),
    ) -> None:
        self._offer, self._sender, self._shown, self._names = disk, sender, shown, names

    def size(self) -> int | None:
        """Return the limit of the disk."""
        return self._offer.size

    def arm(self) -> None:
        """Have the program of the next round wait."""
        with self._shown() as root:
            self._sender.arm(root)

    def still(self) -> None:
        """Nothing is frozen for a round."""

    def send(self, *, still: bool, progress: Progress) -> int:
        """Send the files that changed since the round before."""
        with self._shown() as root:
            self._sender.send(
                root, progress, still=still, names=self._names, expected=self._offer.used
            )
        return self._sender.last

    def finish(self) -> None:
        """Say that all was sent."""
        self._sender.finish()
