"""The device program in the real kernel: on a cgroup of the cgroup2 tree, which exists here too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pyvz.linux import cgroupfs, deviceprogram
from pyvz.linux.mount import mounts
from pyvz.model.limits import DeviceRule

pytestmark = pytest.mark.requires("cgroup2")

TRY = """
import os, sys
try:
    if sys.argv[1] == "mknod":
        os.mknod(sys.argv[2], 0o20600, os.makedev(int(sys.argv[3]), int(sys.argv[4])))
    else:
        os.open(sys.argv[2], {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}[sys.argv[1]])
except PermissionError:
    sys.exit(1)
"""


@pytest.fixture
def directory() -> Iterator[str]:
    top = next(entry.target for entry in mounts() if entry.fstype == "cgroup2")
    path = f"{top}/pyvz-p{os.getpid()}"
    os.mkdir(path)
    yield path
    cgroupfs.remove([path])


def rules(*texts: str) -> list[DeviceRule]:
    return [DeviceRule.parse(text) for text in texts]


def allowed(directory: str, *words: str) -> bool:
    script = f'echo $$ > "{directory}/cgroup.procs" && exec "$@"'
    argv = ["sh", "-c", script, "sh", sys.executable, "-ISc", TRY, *words]
    result = subprocess.run(argv, check=False, stdin=subprocess.PIPE, timeout=120)
    assert result.returncode in (0, 1)
    return result.returncode == 0


def test_exactly_the_allowed(directory, tmp_path):
    deviceprogram.attach(directory, rules("c 1:3 rwm", "c 1:5 r", "c 1:9 w", "c 7:* m"))
    assert allowed(directory, "rw", "/dev/null")
    assert allowed(directory, "r", "/dev/zero")
    assert not allowed(directory, "w", "/dev/zero")
    assert not allowed(directory, "rw", "/dev/zero")
    assert allowed(directory, "w", "/dev/urandom")
    assert not allowed(directory, "r", "/dev/urandom")
    assert not allowed(directory, "r", "/dev/full")
    assert allowed(directory, "mknod", str(tmp_path / "a"), "1", "3")
    assert not allowed(directory, "mknod", str(tmp_path / "b"), "1", "5")
    assert allowed(directory, "mknod", str(tmp_path / "c"), "7", "130")


def test_replaced_without_piling_up(directory):
    deviceprogram.attach(directory, ())
    assert not allowed(directory, "r", "/dev/null")
    first = deviceprogram.attached(directory)
    deviceprogram.attach(directory, rules("c *:* rwm"))
    second = deviceprogram.attached(directory)
    assert len(first) == len(second) == 1
    assert first != second
    assert allowed(directory, "r", "/dev/full")


def test_whole_lists_are_accepted(directory):
    many = rules(*(f"{kind} {major}:{minor} rw" for kind in "bc" for major in range(1, 30)
                   for minor in (0, 7, 300)))  # fmt: skip
    deviceprogram.attach(directory, many)
    assert allowed(directory, "r", "/dev/full")


def test_children_are_bound_too(directory):
    deviceprogram.attach(directory, rules("c 1:3 rwm"))
    os.mkdir(f"{directory}/child")
    deviceprogram.attach(f"{directory}/child", rules("c *:* rwm"))
    assert allowed(f"{directory}/child", "r", "/dev/null")
    assert not allowed(f"{directory}/child", "r", "/dev/full")
