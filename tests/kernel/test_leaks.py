"""The leak fixture itself: it sees what it is for."""

from __future__ import annotations

import os
import subprocess

import leaks
from engine import wait_for
from pyvz.linux import mount


def new(before: dict[str, set[str]]) -> list[tuple[str, str]]:
    return leaks.more(before, leaks.snapshot())


def test_sees_a_mount(short_root):
    before = leaks.snapshot()
    mount.mount("pyvz-test", short_root, "tmpfs")
    try:
        assert ("mount", f"tmpfs pyvz-test on {short_root}") in new(before)
    finally:
        mount.umount(short_root)


def test_sees_a_process_whoever_started_it():
    before = leaks.snapshot()
    # The shell ends; its child is an orphan and comes to us.
    with subprocess.Popen(["sh", "-c", "sleep 77 & echo $!"], stdout=subprocess.PIPE) as shell:
        assert shell.stdout
        pid = int(shell.stdout.readline())
    wait_for(lambda: b"sleep" in leaks.command_line(pid))
    found = [name for kind, name in new(before) if kind == "process"]
    assert found == [f"{pid} sleep 77"]
    leaks._reap_children(before)
    assert not [kind for kind, _ in new(before) if kind == "process"]


def test_sees_a_descriptor_and_a_cgroup(tmp_path):
    before = leaks.snapshot()
    fd = os.open(tmp_path, os.O_RDONLY)
    path = f"{leaks.CGROUP}/pids/pyvz-leaktest.slice"
    if not os.path.isdir(os.path.dirname(path)):
        path = f"{leaks.CGROUP}/pyvz-leaktest.slice"
    os.mkdir(path)
    try:
        found = new(before)
        assert ("descriptor", f"{fd} -> {tmp_path}") in found
        assert ("cgroup", path) in found
    finally:
        os.rmdir(path)
        os.close(fd)
