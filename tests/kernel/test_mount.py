"""linux/mount.py on real mounts below a temporary directory."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from pyvz.errors import Busy, MountError
from pyvz.linux import mount


@pytest.fixture
def place(short_root):
    mount.mount("pyvz-test", short_root, "tmpfs", data="size=1m")
    mount.make_private(short_root)
    (short_root / "source").mkdir()
    (short_root / "target").mkdir()
    (short_root / "source/file").write_text("x")
    yield short_root
    mount.umount(short_root, recursive=True, timeout=60)


def test_bind_and_umount(place):
    source, target = place / "source", place / "target"
    assert not mount.is_mount_point(target)
    mount.bind(source, target)
    assert mount.is_mount_point(target)
    assert (target / "file").read_text() == "x"
    entry = mount.mount_at(target)
    assert entry is not None
    assert (entry.root, entry.fstype, entry.source) == ("/source", "tmpfs", "pyvz-test")
    mount.umount(target)
    assert not mount.is_mount_point(target)
    mount.umount(target)  # idempotent
    mount.umount(place / "nothing/here")


def test_readonly_bind(place):
    target = place / "target"
    mount.bind(place / "source", target, readonly=True)
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()
    (place / "source/new").touch()
    mount.set_readonly(target, readonly=False)
    (target / "other").touch()


def test_failed_bind_says_why(place):
    with pytest.raises(MountError, match=r"could not be bound to .*: No such file or directory"):
        mount.bind(place / "none", place / "target")


def test_strange_names(place):
    target = place / "with space\tand\\back\nline"
    target.mkdir()
    mount.bind(place / "source", target)
    assert mount.is_mount_point(target)
    assert [entry.target for entry in mount.mounts(target)] == [str(target)]
    mount.umount(target)
    assert not mount.is_mount_point(target)


def test_layers_all_go(place):
    for _ in range(3):
        mount.bind(place / "source", place / "target")
    mount.umount(place / "target")
    assert not mount.is_mount_point(place / "target")


def test_busy_names_the_holder(place):
    target = place / "target"
    mount.bind(place / "source", target)
    with subprocess.Popen(["sleep", "100"], cwd=target) as process:
        begun = time.monotonic()
        with pytest.raises(Busy) as error:
            mount.umount(target, timeout=0.2)
        assert time.monotonic() - begun >= 0.2
        assert f"sleep (pid {process.pid}) uses {target}" in error.value.details
        process.kill()
    mount.umount(target, timeout=60)


def test_busy_names_the_mounts_below(place):
    (place / "source/sub").mkdir()
    mount.bind(place / "source", place / "target")
    mount.bind(place / "source", place / "target/sub")
    with pytest.raises(Busy, match="in use") as error:
        mount.umount(place / "target")
    assert str(place / "target/sub") in error.value.details
    mount.umount(place / "target", recursive=True)
    assert mount.mounts(place / "target") == []


def test_link_at_the_target_is_not_followed(place):
    mount.bind(place / "source", place / "target")
    (place / "link").symlink_to(place / "target")
    mount.umount(place / "link")
    assert mount.is_mount_point(place / "target")


def test_make_shared_is_idempotent(place):
    shared = place / "source"
    mount.make_shared(shared)
    mount.make_shared(shared)
    assert len(mount.mounts(shared)) == 1
    assert mount.mounts(shared)[0].shared


def test_holding_mount(place):
    assert mount.holding_mount(place / "source/file").target == str(place)
    mount.bind(place / "source", place / "target")
    assert mount.holding_mount(place / "target/file").target == str(place / "target")
    with pytest.raises(FileNotFoundError):
        mount.holding_mount(place / "none")


def test_mounts_of_another_process(place):
    argv = ["unshare", "--mount", "--propagation", "slave", "sleep", "100"]
    with subprocess.Popen(argv) as process:
        time.sleep(0.1)
        found = mount.mounts(place, pid=process.pid)
        process.kill()
    assert [entry.fstype for entry in found] == ["tmpfs"]
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        mount.mounts(pid=process.pid)


def test_whole_table():
    table = mount.mounts()
    assert table[0].mount_id
    assert {entry.target for entry in table} >= {"/", "/proc"}
    assert mount.is_mount_point("/")
    assert os.path.ismount("/")
