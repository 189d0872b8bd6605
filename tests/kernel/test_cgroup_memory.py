"""The memory of real control groups: seen, protected, given back, held below a ceiling."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvz.errors import NotEnoughResources
from pyvz.linux import kept_files, numa
from pyvz.linux.cgroup import Cgroups, detect
from pyvz.linux.cgroup_memory import Memory, Promise, node_memory, refault_unit
from pyvz.linux.kept_files import KeptFiles
from pyvz.model.limits import Limits
from pyvz.model.memory import Protection, Sample
from pyvz.units import MIB, PAGE_SIZE, UNLIMITED

pytestmark = pytest.mark.requires("cgroup2")

# Reads its file again and again, each time somebody tells it to; holds memory of its own beside.
LOAD = """\
import sys
held = bytearray(int(sys.argv[2]) << 20)
for place in range(0, len(held), 4096):
    held[place] = 1
for _ in sys.stdin:
    with open(sys.argv[1], "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    print("read", flush=True)
"""


@pytest.fixture
def groups() -> Iterator[Cgroups]:
    found = detect(f"pyvz-m{os.getpid()}.slice")
    yield found
    found.memory.close()
    for name in found.names():
        found.kill(name)
        found.remove(name)
    found.remove_parent()


@pytest.fixture
def name(groups: Cgroups) -> str:
    new = str(uuid.uuid4())
    groups.create(new)
    groups.apply(new, Limits(memory=300 * MIB, swap=0))
    return new


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of 100 MiB that is on the disk and not in memory."""
    path = tmp_path / "data"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(1 << 10) * 1024)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


class Load:
    """The process; `read` makes it read once."""

    def __init__(self, memory: Memory, name: str, file: Path, held: int) -> None:
        self.process = subprocess.Popen(
            [
                "/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', memory.path(name),
                sys.executable, "-IS", "-c", LOAD, str(file), str(held),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip

    def read(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"read\n"


@contextmanager
def load(groups: Cgroups, name: str, file: Path, held: int = 0) -> Iterator[Load]:
    made = Load(groups.memory, name, file, held)
    try:
        made.read()
        yield made
    finally:
        made.process.communicate(b"")


def sample(groups: Cgroups, name: str) -> Sample:
    found = groups.memory.sample(groups.memory.path(name))
    assert found is not None
    return found


def test_what_is_seen(groups, name, data):
    memory = groups.memory
    assert memory.sample(memory.path("nobody")) is None
    with load(groups, name, data, 30) as reader:
        first = sample(groups, name)
        assert 130 * MIB <= first.used < 200 * MIB
        assert 95 * MIB <= first.cache < 140 * MIB
        assert 30 * MIB <= first.anon < 60 * MIB
        # What was taken away and is read again are refaults, in bytes.
        assert memory.reclaim(memory.path(name), 90 * MIB) >= 60 * MIB
        reader.read()
        second = sample(groups, name)
        assert 40 * MIB <= second.refaults - first.refaults < 110 * MIB
        assert second.fresh > first.fresh
        memory.settle()
    groups.kill(name)
    groups.wait_empty(name, 60)
    groups.remove(name)
    assert memory.sample(memory.path(name)) is None


def test_giving_back_kills_nobody_and_leaves_the_limit(groups, name, data):
    memory = groups.memory
    path = memory.path(name)
    with load(groups, name, data, 100) as reader:
        before = sample(groups, name)
        assert memory.reclaim(path, 50 * MIB) >= 30 * MIB
        memory.reclaim(path, 10 * before.used)
        after = sample(groups, name)
        assert after.anon >= 100 * MIB
        assert after.used < before.used - 50 * MIB
        assert memory.present_limits(path)[0] == 300 * MIB
        reader.read()
        assert groups.usage(name).oom_kills == 0


def test_a_ceiling_holds_the_cache_and_not_the_memory(groups, name, data):
    memory = groups.memory
    path = memory.path(name)
    memory.protect(path, 0, Protection(high=60 * MIB))
    with load(groups, name, data, 10) as reader:
        deadline = time.monotonic() + 120
        while sample(groups, name).used > 62 * MIB:
            assert time.monotonic() < deadline
            reader.read()
            time.sleep(0.1)
        assert memory.present_limits(path)[0] == 300 * MIB
        memory.protect(path, 0, Protection())
        while sample(groups, name).used <= 100 * MIB:
            assert time.monotonic() < deadline
            reader.read()
            time.sleep(0.1)
    assert groups.usage(name).oom_kills == 0


@pytest.mark.requires("cgroup_v1")
def test_memory_may_grow_through_a_ceiling(groups, name, data):
    """Only on v1, where the ceiling is ours; the kernel's memory.high slows it down instead."""
    groups.memory.protect(groups.memory.path(name), 0, Protection(high=30 * MIB))
    with load(groups, name, data, 120) as reader:
        reader.read()
        assert sample(groups, name).anon >= 120 * MIB
    assert groups.usage(name).oom_kills == 0


def test_a_lower_limit_is_reached_or_refused_within_its_time(groups, name, data):
    memory = groups.memory
    path = memory.path(name)
    with load(groups, name, data, 80):
        memory.set_limits(path, 128 * MIB, 0)
        assert sample(groups, name).used <= 128 * MIB
        for limit in (40 * MIB, 60 * MIB):
            with pytest.raises(NotEnoughResources, match="could give back only down to"):
                memory.set_limits(path, limit, 0)
            assert memory.present_limits(path)[0] == 128 * MIB
        memory.set_limits(path, UNLIMITED, UNLIMITED)
        assert memory.present_limits(path)[0] == UNLIMITED
    assert groups.usage(name).oom_kills == 0


def test_protection_is_written_where_the_kernel_has_it(groups, name):
    memory = groups.memory
    path = memory.path(name)
    memory.protect(path, 32 * MIB, Protection(low=64 * MIB))
    memory.promise(Promise(32 * MIB, 64 * MIB))
    files = ("memory.soft_limit_in_bytes", "memory.low")
    (low,) = (int(Path(path, file).read_text()) for file in files if Path(path, file).exists())
    assert low == 64 * MIB
    if groups.version == 2:
        assert int(Path(path, "memory.min").read_text()) == 32 * MIB
        assert int(Path(path).parent.joinpath("memory.min").read_text()) == 32 * MIB


def test_a_limit_on_the_parent_makes_the_node_smaller(groups, name):
    whole = node_memory(groups.memory, 0)
    assert whole.usable == whole.total
    parent = Path(groups.memory.path(name)).parent
    files = ("memory.limit_in_bytes", "memory.max")
    file = next(parent / file for file in files if (parent / file).exists())
    file.write_text(str(512 * MIB))
    small = node_memory(groups.memory, 100 * MIB)
    assert (small.total, small.usable) == (512 * MIB, 512 * MIB)
    assert small.free <= 512 * MIB
    file.write_text("-1" if "limit_in" in file.name else "max")


def test_files_are_kept_open_within_bounds(groups, name):
    path = groups.memory.path(name) + "/cgroup.procs"
    before = len(os.listdir("/proc/self/fd"))
    files = KeptFiles(most=1)
    assert files.read(path) == files.read(path) == ""
    assert files.read("/proc/self/stat")  # one too many: opened and closed
    assert len(os.listdir("/proc/self/fd")) == before + 1
    groups.remove(name)
    assert files.read(path) is None
    groups.create(name)
    assert files.read(path) == ""
    files.sweep()
    files.sweep()
    assert len(os.listdir("/proc/self/fd")) == before
    assert kept_files.KeptFiles().read("/nowhere") is None


def test_facts_of_the_machine():
    assert refault_unit("6.7.12-amd64") == 1
    assert refault_unit("6.8.0") == refault_unit("6.18.44-x") == PAGE_SIZE
    nodes = numa.nodes()
    assert sum(node.total for node in nodes) > 0
    assert numa.nodes("/nowhere") == ()
