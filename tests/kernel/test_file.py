"""linux/file.py and linux/guestroot.py against trees that were made to hurt."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pyvz.errors import (
    Busy,
    Cancelled,
    ConfigError,
    GuestFileError,
    Locked,
    NoSpace,
    StorageError,
)
from pyvz.linux import file, mount
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.task import NoProgress


class CancelSoon(NoProgress):
    def advance(self, done, total=None, *, unit="B"):
        raise Cancelled("no")


# Files of the node


def test_write_atomic_replaces(tmp_path):
    path = tmp_path / "conf"
    file.write_atomic(path, "one\n")
    first = path.stat().st_ino
    file.write_atomic(path, b"two\n", 0o600)
    assert path.read_text() == "two\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_ino != first
    assert os.listdir(tmp_path) == ["conf"]


def test_write_atomic_follows_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "101.conf"
    link.symlink_to("there/ve.conf")
    file.write_atomic(link, "x")
    assert link.is_symlink()
    assert (tmp_path / "there/ve.conf").read_text() == "x"


def test_write_atomic_on_a_full_disk_changes_nothing(short_root):
    mount.mount("pyvz-test", short_root, "tmpfs", data="size=64k")
    try:
        path = short_root / "conf"
        file.write_atomic(path, "old")
        with pytest.raises(NoSpace):
            file.write_atomic(path, "x" * 1_000_000)
        assert path.read_text() == "old"
        assert os.listdir(short_root) == ["conf"]
    finally:
        mount.umount(short_root)


def test_read_text_limited(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"a\xff" * 10)
    assert file.read_text_limited(path, 20) == "a\udcff" * 10
    with pytest.raises(ConfigError, match="more than 19 bytes"):
        file.read_text_limited(path, 19)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="not a regular file"):
        file.read_text_limited(tmp_path / "fifo")


def test_flock_excludes_and_waits(tmp_path):
    path = tmp_path / "lock"
    with file.flock(path):
        with pytest.raises(Locked), file.flock(path):
            pass
        begun = time.monotonic()
        with pytest.raises(Locked), file.flock(path, timeout=0.2):
            pass
        assert 0.2 <= time.monotonic() - begun < 30
    with file.flock(path, shared=True), file.flock(path, shared=True):
        pass


def test_flock_of_an_unlinked_file_is_none(tmp_path):
    path = tmp_path / "lock"
    with file.flock(path):
        timer = threading.Timer(0.1, path.unlink)
        timer.start()
        with file.flock(path, timeout=30) as fd:
            assert os.path.samestat(os.fstat(fd), path.stat())
        timer.join()


def test_remove_tree(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    tree = tmp_path / "tree"
    (tree / "a/b/c").mkdir(parents=True)
    (tree / "a/link").symlink_to(outside)
    (tree / "dangling").symlink_to("/nowhere")
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tree / "s"))
    (tree / "locked").mkdir(0)
    file.remove_tree(tree)
    assert not tree.exists()
    assert (outside / "precious").exists()
    file.remove_tree(tree)  # idempotent
    (tmp_path / "link").symlink_to(outside)
    file.remove_tree(tmp_path / "link")
    assert (outside / "precious").exists()


def test_remove_tree_deeper_than_any_path(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    fd = os.open(tree, os.O_RDONLY)
    for depth in range(3000):
        os.mkdir("d" * 20, dir_fd=fd)
        if depth % 7 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        new = os.open("d" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = new
    os.close(fd)
    assert file.tree_inodes(tree) > 3000
    file.remove_tree(tree)
    assert not tree.exists()


def test_remove_tree_never_crosses_a_mount(short_root):
    for name in ("keep", "tree/sub/mnt"):
        (short_root / name).mkdir(parents=True)
    (short_root / "keep/precious").touch()
    (short_root / "tree/first").touch()
    mount.bind(short_root / "keep", short_root / "tree/sub/mnt")
    try:
        with pytest.raises(Busy, match="something is mounted in it"):
            file.remove_tree(short_root / "tree")
        assert (short_root / "tree/first").exists()
        # even when it comes after the first look
        with pytest.raises(Busy, match="mount point"):
            file._Removal(str(short_root / "tree"), NoProgress()).run()
        assert (short_root / "keep/precious").exists()
    finally:
        mount.umount(short_root / "tree/sub/mnt")


@pytest.mark.requires("program:chattr")
def test_remove_tree_with_an_immutable_file(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "stone").touch()
    done = subprocess.run(["chattr", "+i", tree / "stone"], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("the file system has no immutable files")
    try:
        with pytest.raises(StorageError) as error:
            file.remove_tree(tree)
        assert "stone cannot be removed" in error.value.message
        assert f"chattr -R -i -a {tree}" in error.value.hint
    finally:
        subprocess.run(["chattr", "-i", tree / "stone"], check=True)
    file.remove_tree(tree)


def test_remove_tree_can_be_cancelled(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(600):
        (tree / str(number)).touch()
    with pytest.raises(Cancelled):
        file.remove_tree(tree, CancelSoon())
    assert tree.exists()


def test_tree_size_and_copy(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "data").write_bytes(b"x" * 100_000)
    os.link(source / "data", source / "hard")
    os.chown(source / "data", 1000, 2000)
    os.setxattr(source / "data", "user.colour", b"red")
    assert 100_000 <= file.tree_size(source) < 130_000
    assert file.tree_inodes(source) == 2
    target = tmp_path / "target"
    file.copy_tree(source, target)
    copied = (target / "data").stat()
    assert (copied.st_uid, copied.st_gid, copied.st_nlink) == (1000, 2000, 2)
    assert os.getxattr(target / "data", "user.colour") == b"red"


def test_reflink_or_false(tmp_path):
    (tmp_path / "a").write_text("x")
    done = file.reflink(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").exists() == done
    if done:
        assert (tmp_path / "b").read_text() == "x"


# The guest's tree


@pytest.fixture
def tree(tmp_path):
    path = tmp_path / "root"
    (path / "etc").mkdir(parents=True)
    (tmp_path / "secret").write_text("of the node")
    return path


@pytest.fixture
def guest(tree):
    with GuestRoot.open(tree) as found:
        yield found


def test_guest_reads_and_writes(guest, tree):
    guest.write("/etc/hostname", "ct1\n")
    assert guest.read("etc/hostname") == b"ct1\n"
    assert guest.read_text("/etc/hostname") == "ct1\n"
    os.chown(tree / "etc/hostname", 5, 6)
    (tree / "etc/hostname").chmod(0o640)
    guest.write("/etc/hostname", "ct2\n")
    found = (tree / "etc/hostname").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (5, 6, 0o640)
    guest.write("/etc/hostname", "ct3\n", mode=0o600)
    assert stat.S_IMODE((tree / "etc/hostname").stat().st_mode) == 0o600
    assert guest.names("etc") == ["hostname"]
    guest.write("/a/b/c", "x", make_parents=True)
    assert guest.is_dir("a/b")
    assert guest.is_file("a/b/c")
    guest.remove("/a/b/c")
    guest.remove("/a/b/c")
    guest.remove("/a/b")
    assert not guest.exists("/a/b")
    guest.symlink("../usr/lib/os-release", "/etc/os-release")
    guest.symlink("/other", "/etc/os-release")
    assert guest.readlink("etc/os-release") == "/other"
    assert not guest.exists("etc/os-release")


@pytest.mark.parametrize(
    "link", ["../../secret", "/../../secret", "../../../../../../../etc/passwd", "/proc/1/root/etc"]
)
def test_guest_links_lead_nowhere_outside(guest, tree, tmp_path, link):
    (tree / "etc/evil").symlink_to(link)
    with pytest.raises(FileNotFoundError):
        guest.read("etc/evil")
    assert not guest.exists("etc/evil")


def test_guest_absolute_links_mean_its_own_root(guest, tree, tmp_path):
    (tree / "real").mkdir()
    (tree / "real/file").write_text("inside")
    (tree / "abs").symlink_to("/real")
    (tree / "up").symlink_to("../../../real")
    assert guest.read("abs/file") == b"inside"
    assert guest.read("up/file") == b"inside"
    guest.write("abs/new", "x")
    assert (tree / "real/new").read_text() == "x"


def test_guest_write_replaces_a_link(guest, tree, tmp_path):
    (tree / "etc/resolv.conf").symlink_to(tmp_path / "secret")
    guest.write("etc/resolv.conf", "nameserver ::1\n")
    assert (tmp_path / "secret").read_text() == "of the node"
    assert not (tree / "etc/resolv.conf").is_symlink()
    (tree / "etc/dir").symlink_to(tmp_path)  # absolute: a place inside that is not there
    with pytest.raises(FileNotFoundError):
        guest.write("etc/dir/secret", "x")
    assert (tmp_path / "secret").read_text() == "of the node"


def test_guest_special_files_do_not_hang(guest, tree):
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tree / "sock"))
    begun = time.monotonic()
    for name in ("fifo", "null", "sock", "etc"):
        with pytest.raises(GuestFileError, match="not a regular file"):
            guest.read(name)
        with pytest.raises(GuestFileError, match="not a regular file"):
            guest.write(name, "x")
    assert time.monotonic() - begun < 30
    assert os.listdir(tree / "etc") == []


def test_guest_huge_files_are_refused(guest, tree):
    with open(tree / "huge", "wb") as big:
        big.truncate(1 << 40)
    with pytest.raises(GuestFileError, match="more than 1048576 bytes"):
        guest.read("huge")
    (tree / "small").write_bytes(b"x" * 10)
    assert guest.read("small", limit=10)
    with pytest.raises(GuestFileError):
        guest.read("small", limit=9)


def test_guest_link_loops(guest, tree):
    (tree / "a").symlink_to("b")
    (tree / "b").symlink_to("a")
    assert not guest.exists("a")
    with pytest.raises(OSError, match=r"Too many levels") as error:
        guest.read("a")
    assert error.value.errno == errno.ELOOP


def test_guest_magic_links_are_refused(tmp_path):
    with GuestRoot.open("/proc") as guest, pytest.raises(OSError, match="Too many levels"):
        guest.read("self/exe")


def test_guest_paths_that_name_nothing(guest):
    for bad in ("", "/", "..", "etc/.."):
        with pytest.raises(GuestFileError, match="does not name a file"):
            guest.write(bad, "x")


def test_guest_race_of_directory_and_link(guest, tree, tmp_path):
    """While the inside swaps a directory for a link out, nothing ever lands outside."""
    (tree / "etc/sub").mkdir()
    (tree / "etc/evil").symlink_to("../../../../../.." + str(tmp_path))
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(tree / "etc/sub", tree / "etc/spare")
            os.rename(tree / "etc/evil", tree / "etc/sub")
            os.rename(tree / "etc/sub", tree / "etc/evil")
            os.rename(tree / "etc/spare", tree / "etc/sub")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        written = number = 0
        deadline = time.monotonic() + 30
        # On a busy machine a write may meet the directory only now and then.
        while number < 400 or (not written and time.monotonic() < deadline):
            number += 1
            try:
                guest.write("etc/sub/secret", f"{number}")
                written += 1
            except (OSError, GuestFileError):
                continue
    finally:
        stop.set()
        thread.join()
    assert written
    assert (tmp_path / "secret").read_text() == "of the node"
    assert sorted(os.listdir(tmp_path)) == ["root", "secret"]


def test_guest_chmod(guest, tree):
    guest.write("etc/x", "1")
    guest.chmod("etc/x", 0o400)
    assert stat.S_IMODE(Path(tree / "etc/x").stat().st_mode) == 0o400
