"""Backup and restore of stopped containers: real trees, real images on a reflink file system."""

from __future__ import annotations

import logging
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import places
from homes import node_with_template, request
from pyvz.errors import (
    AlreadyExists,
    NotMounted,
)
from pyvz.linux import extents
from pyvz.model.environment import Environment
from pyvz.operations import backup, lifecycle, provision, restore
from pyvz.operations.backup import Request
from pyvz.operations.backupstorage import Where
from pyvz.operations.node import Node
from pyvz.operations.restore import Wanted

pytestmark = pytest.mark.requires("root")
MIB = 1 << 20


@pytest.fixture
def node(short_root: Path) -> Iterator[Node]:
    """A node on an xfs with reflinks."""
    with places.file_system("xfs", short_root / "p", 4 << 30) as place:
        yield node_with_template(place)


def make(node: Node, driver: str, name: str = "ct1") -> Environment:
    env = provision.create(node, request(name=name, layout=driver, uuid=None))
    with mounted(node, env) as root:
        furnish(root)
    return env


class mounted:
    """The root of a stopped container, for a while."""

    def __init__(self, node: Node, env: Environment) -> None:
        self.node, self.env = node, env

    def __enter__(self) -> Path:
        lifecycle.mount(self.node, self.env.uuid)
        return self.node.root(self.env)

    def __exit__(self, *_: object) -> None:
        lifecycle.umount(self.node, self.env.uuid)


def furnish(root: Path) -> None:
    """Files of every kind that a tree can have."""
    (root / "data").mkdir(mode=0o750)
    (root / "data/big").write_bytes(random.Random(1).randbytes(3 * MIB + 17))
    with (root / "data/sparse").open("wb") as file:
        file.seek(5 * MIB + 3)
        file.write(b"end")
        file.truncate(9 * MIB)
    for number in range(50):
        (root / f"data/small{number}").write_text(f"{number}\n" * number)
    os.link(root / "data/big", root / "data/another-name")
    (root / "data/link").symlink_to("/nowhere/at all")
    os.mkfifo(root / "data/fifo", 0o640)
    os.mknod(root / "data/null", 0o20666, os.makedev(1, 3))
    (root / "data/setuid").write_text("x")
    os.chown(root / "data/setuid", 1000, 1001)
    os.chmod(root / "data/setuid", 0o6755)
    os.setxattr(root / "data/setuid", "user.note", b"\0\xff")
    os.setxattr(
        root / "data/small1", "security.capability", bytes.fromhex("0100000200040000") + bytes(12)
    )
    (root / os.fsdecode(b"data/not \xff utf-8\n")).write_text("name")
    os.utime(root / "data/small2", ns=(1, 1234567890123456789))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(root / "data/socket"))
    listener.close()
    os.utime(root / "data", ns=(5, 5 * 10**9))


def tree(root: Path) -> dict[str, object]:
    """Everything that can be known about a tree, but for sockets."""
    found: dict[str, object] = {}
    inodes: dict[int, str] = {}
    for directory, names, files in os.walk(root):
        for name in sorted([*names, *files]):
            path = Path(directory, name)
            at = os.fspath(path.relative_to(root))
            status = path.lstat()
            if path.is_socket() or at == "lost+found":
                continue
            attributes = {
                a: os.getxattr(path, a, follow_symlinks=False)
                for a in os.listxattr(path, follow_symlinks=False)
            }
            content: object = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            same = inodes.setdefault(status.st_ino, at) if not path.is_dir() else ""
            found[at] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_rdev,
                attributes,
                content,
                same,
                status.st_nlink if not path.is_dir() else 0,
            )
    return found


def tree_of(node: Node, env: Environment) -> dict[str, object]:
    with mounted(node, env) as root:
        return tree(root)


DRIVERS = ("simfs", "ploop", "rawfile")


@pytest.mark.parametrize("driver", DRIVERS)
def test_full_change_incremental_restore(node: Node, driver: str) -> None:
    env = make(node, driver)
    first = tree_of(node, env)
    full = backup.create(node, env.name, Request(description="the first"))
    assert full.id == full.chain
    with mounted(node, env) as root:
        (root / "data/big").write_bytes(b"new" * 1000)
        (root / "data/small7").unlink()
        (root / "data/added").write_text("added")
        shutil.move(root / "data/small8", root / "moved")
    second = tree_of(node, env)
    partial = backup.create(node, "ct1", Request())
    assert partial.id == f"{full.chain}.2"
    assert partial.stored < full.stored
    assert [row.manifest.id for row in backup.rows(node)] == [full.id, partial.id]

    copy = restore.restore(node, Wanted(ref="ct1", name="copy"))
    assert copy.uuid != env.uuid
    assert tree_of(node, copy) == second
    old = restore.restore(node, Wanted(tag=full.tag, name="old"))
    assert tree_of(node, old) == first
    # In place.
    restore.restore(node, Wanted(tag=full.tag))
    assert tree_of(node, env) == first
    assert not list(env.home.parent.glob(".*"))
    again = backup.create(node, "ct1", Request())
    assert again.number == 3
    assert tree_of(node, restore.restore(node, Wanted(ref="ct1", name="third"))) == first
    assert backup.verify(node) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_deleted_container_comes_back(node: Node, driver: str) -> None:
    env = make(node, driver)
    (env.home / "scripts/start").write_text("#!/bin/sh\n")
    (env.home / "scripts/start").chmod(0o700)
    before = tree_of(node, env)
    backup.create(node, "ct1", Request())
    conf = (env.home / "ve.conf").read_text()
    provision.delete(node, "ct1")
    found = restore.restore(node, Wanted(ref="ct1"))
    assert found == env
    assert tree_of(node, env) == before
    assert (env.home / "ve.conf").read_text() == conf
    assert (env.home / "scripts/start").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("driver", DRIVERS)
def test_backup_is_mounted(node: Node, driver: str) -> None:
    env = make(node, driver)
    before = tree_of(node, env)
    made = backup.create(node, "ct1", Request())
    shown = restore.show(node, made.tag)
    with pytest.raises(AlreadyExists, match="mounted already"):
        restore.show(node, made.tag)
    try:
        assert tree(shown.target) == before
        with pytest.raises(OSError, match="Read-only"):
            (shown.target / "new").touch()
    finally:
        restore.hide(node, made.tag)
    with pytest.raises(NotMounted):
        restore.hide(node, made.tag)
    assert not list((node.paths.vz / "tmp").iterdir())


def spread(path: Path, *, size: int, seed: int) -> None:
    """Random data of `size` bytes in a file, made or overwritten in place."""
    source = random.Random(seed)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    for at in range(0, size, MIB):
        os.pwrite(fd, source.randbytes(MIB), at)
    os.fsync(fd)
    os.close(fd)


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


@pytest.mark.long
def test_incremental_takes_time_like_the_change(node: Node) -> None:
    env = make(node, "ploop")
    with mounted(node, env) as root:
        spread(root / "bulk", size=400 * MIB, seed=2)
    full = timed(lambda: backup.create(node, "ct1", Request()))
    with mounted(node, env) as root:
        spread(root / "bulk", size=4 * MIB, seed=3)
    small = timed(lambda: backup.create(node, "ct1", Request()))
    rows = backup.rows(node)
    assert rows[-1].manifest.stored < 10 * MIB
    assert small < full / 5, f"{small:.2f} s for 1 %, {full:.2f} s for all"


def test_each_place_has_a_reference_of_its_own(
    node: Node, short_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Backups that go to two places in turn read only what changed since the last one there."""
    env = make(node, "ploop")
    wheres = [Where(), *(Where(str(node.paths.vz / f"other{n}")) for n in range(4))]
    caplog.set_level(logging.INFO, "pyvz.operations.capture")
    for number in range(3):
        with mounted(node, env) as root:
            spread(root / "data/more", size=MIB, seed=number)
        for where in wheres[:2]:
            backup.create(node, "ct1", Request(where=where))
        assert "all is read" not in caplog.text
    want = tree_of(node, env)
    for number, where in enumerate(wheres[:2]):
        assert len(backup.rows(node, where=where)) == 3
        wanted = Wanted(ref="ct1", name=f"copy{number}", where=where)
        assert tree_of(node, restore.restore(node, wanted)) == want
    kept = env.home / ".backup"
    assert [len(list(entry.iterdir())) for entry in kept.iterdir()] == [1, 1]
    for where in wheres[2:]:
        backup.create(node, "ct1", Request(where=where))
    assert len(list(kept.iterdir())) == 3  # not one for every place that ever was
    backup.create(node, "ct1", Request())
    assert "no reference" in caplog.text


def test_differences_of_clones(node: Node) -> None:
    place = node.paths.vz / "files"
    place.mkdir()
    spread(place / "a", size=8 * MIB, seed=1)
    subprocess.run(["cp", "--reflink=always", place / "a", place / "b"], check=True)
    with (place / "a").open("r+b") as new, (place / "b").open("rb") as old:
        assert extents.differences(old.fileno(), new.fileno()) == []
        os.pwrite(new.fileno(), b"x", 3 * MIB + 5)
        subprocess.run(
            ["fallocate", "-p", "-o", str(5 * MIB), "-l", "65536", place / "a"], check=True
        )
        found = extents.differences(old.fileno(), new.fileno())
        assert [each.start // MIB for each in found] == [3, 5]
        assert sum(each.length for each in found) <= 64 << 10 << 1
        assert list(extents.data_ranges(new.fileno(), 0, 6 * MIB))[-1].start == 5 * MIB + 65536
