"""The marker `requires`: what a test needs from the machine, in words.

    @pytest.mark.requires("root", "loop", "program:mkfs.xfs")

A test whose needs are not met is skipped with the reason.  Needs named in PYVZ_MUST (blank
separated; "all" for every one) fail the test instead: so CI notices when it tests nothing.
Tests below tests/kernel, tests/system and tests/nodes always need root.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvz.container import criu

ROOT_DIRECTORIES = ("kernel", "system", "nodes")


def _mounted(fstype: str) -> bool:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(f" - {fstype} " in line for line in lines)


def _root() -> str:
    return "" if os.geteuid() == 0 else "not run as root"


def _cgroup2() -> str:
    return "" if _mounted("cgroup2") else "no cgroup2 file system is mounted"


def _cgroup_v1() -> str:
    return "" if _mounted("cgroup") else "no cgroup v1 hierarchy is mounted"


def _cgroup_v2() -> str:
    return "cgroup v1 controllers are mounted" if _mounted("cgroup") else _cgroup2()


def _kvm() -> str:
    return "" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm cannot be used"


def _loop() -> str:
    return "" if Path("/dev/loop-control").exists() else "the kernel has no loop devices"


def _userns() -> str:
    number = Path("/proc/sys/user/max_user_namespaces")
    ok = number.exists() and int(number.read_text()) > 0
    return "" if ok else "user namespaces are switched off"


def _systemd() -> str:
    return "" if Path("/run/systemd/system").exists() else "PID 1 is not systemd"


def _criu() -> str:
    with tempfile.TemporaryDirectory() as directory:
        verdict = criu.find(Path(directory))
    return "" if verdict.chosen is not None else f"CRIU: {verdict.words()}"


def _ksm() -> str:
    return "" if Path("/proc/self/ksm_stat").exists() else "the kernel merges no pages (Linux 6.4)"


def _mem_track() -> str:
    """Write to a page after all marks were taken away: it has one again (soft-dirty, bit 55)."""
    try:
        marked = _marked()
    except OSError:  # a kernel without these files
        marked = False
    return "" if marked else "the kernel does not track pages that are written to"


def _marked() -> bool:
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        page[0] = 1
        Path("/proc/self/clear_refs").write_text("4")
        page[0] = 2
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(address // mmap.PAGESIZE * 8)
            return bool(int.from_bytes(file.read(8), sys.byteorder) >> 55 & 1)


NEEDS: dict[str, Callable[[], str]] = {
    "root": _root,
    "cgroup2": _cgroup2,
    "cgroup_v1": _cgroup_v1,
    "cgroup_v2": _cgroup_v2,
    "kvm": _kvm,
    "loop": _loop,
    "userns": _userns,
    "sshd": lambda: "" if Path("/usr/sbin/sshd").exists() else "no openssh-server",
    "systemd": _systemd,
    "criu": functools.cache(_criu),
    "ksm": _ksm,
    "mem_track": functools.cache(_mem_track),
}


def missing(need: str) -> str:
    """Return why a need is not met; empty when it is."""
    if need.startswith("program:"):
        program = need.removeprefix("program:")
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return "" if shutil.which(program, path=path) else f"{program} is not installed"
    if need.startswith("fs:"):
        fstype = need.removeprefix("fs:")
        known = Path("/proc/filesystems").read_text().split()
        return "" if fstype in known else f"the kernel has no {fstype}"
    if need not in NEEDS and shutil.which(need):  # the plain name of a program will do
        return ""
    return NEEDS.get(need, lambda: f"{need} is not there")()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail, a test whose needs the machine does not meet."""
    needs = [need for mark in item.iter_markers("requires") for need in mark.args]
    if any(part in ROOT_DIRECTORIES for part in item.path.parts):
        needs.insert(0, "root")
    must = os.environ.get("PYVZ_MUST", "").split()
    for need in needs:
        reason = missing(need)
        if not reason:
            continue
        if need in must or "all" in must:
            pytest.fail(f"needs {need}: {reason}", pytrace=False)
        pytest.skip(f"needs {need}: {reason}")
