"""A node whose root mount is private (no systemd), and somebody who has copies of our mounts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from engine import wait_for
from images import busybox_root, busybox_tar
from realnode import World

__all__ = ["busybox_root", "busybox_tar"]
pytestmark = pytest.mark.requires("root", "loop")

# Copies of what others have mounted would hold their disks: they are given up at once.
OWN = """\
awk '$5 ~ "^/(tmp|run)/" {print $5}' /proc/self/mountinfo | sort -r | while read -r place; do
    umount --lazy "$place" || :
done
exec sleep 600
"""


class Private(World):
    """A node in a mount namespace in which nothing is shared but what we share."""

    def __init__(self, root: Path, undo: ExitStack) -> None:
        super().__init__(root)
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", OWN]
        self.inside = [f"--mount=/proc/{self._started(argv, undo)}/ns/mnt"]

    def argv(self, program: str, *words: str) -> list[str]:
        return ["nsenter", *self.inside, "--", *super().argv(program, *words)]

    @contextmanager
    def copied(self) -> Iterator[None]:
        """Have somebody hold a copy of all that is mounted now."""
        argv = ["unshare", "--mount", "--propagation", "unchanged", "sleep", "600"]
        with ExitStack() as undo:
            self._started(["nsenter", *self.inside, "--", *argv], undo)
            yield

    def _started(self, argv: list[str], undo: ExitStack) -> int:
        """Run a program that becomes sleep(1) in the end; returns its pid."""
        made = undo.enter_context(subprocess.Popen(argv, stdin=subprocess.DEVNULL))
        undo.callback(made.kill)
        wait_for(lambda: Path(f"/proc/{made.pid}/comm").read_text() == "sleep\n")
        return made.pid


@pytest.fixture
def world(short_root: Path, busybox_tar: Path) -> Iterator[Private]:
    cache = short_root / "vz/template/cache"
    cache.mkdir(parents=True)
    shutil.copy(busybox_tar, cache / "busybox-1-x86_64.plain.tar.zst")
    with ExitStack() as undo:
        made = Private(short_root, undo)
        yield made
        made.end()


def test_copies_of_our_mounts_hold_no_disk(world: Private) -> None:
    world.run("prlctl", "create", "ct", "--vmtype", "ct", "--ostemplate", "busybox-1-x86_64")
    more = ("--device-add", "hdd", "--size", "512M", "--mnt", "/data")
    world.run("prlctl", "set", "ct", *more)
    world.run("prlctl", "start", "ct")
    with world.copied():
        world.run("prlctl", "stop", "ct", "--kill")
    world.run("prlctl", "mount", "ct")
    with world.copied():
        world.run("prlctl", "umount", "ct")
        world.run("prlctl", "start", "ct")
        world.run("prlctl", "stop", "ct", "--kill")
    world.run("prlctl", "start", "ct")
    with world.copied():
        world.run("prlctl", "stop", "ct", "--kill")
        world.run("prlctl", "delete", "ct")
