"""linux/cgroup*.py on this kernel's real hierarchies, with a parent of our own."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import wait_for
from pyvz.errors import BadValue, Busy, NotEnoughResources, SetError, Unsupported
from pyvz.linux import blockdevice, cgroupfs
from pyvz.linux.cgroup import Cgroups, detect
from pyvz.linux.cgroup_tree import MAX_DEPTH
from pyvz.linux.cgroup_v1 import CgroupsV1
from pyvz.model.limits import UNLIMITED, DeviceRule, Limits
from pyvz.model.usage import Usage

pytestmark = pytest.mark.requires("cgroup2")
MIB = 1 << 20
NULL = DeviceRule.parse("c 1:3 rwm")
ZERO = DeviceRule.parse("c 1:5 r")


@pytest.fixture
def groups() -> Iterator[Cgroups]:
    found = detect(f"pyvz-t{os.getpid()}.slice")
    yield found
    for name in found.names():
        found.kill(name)
        found.remove(name)
    found.remove_parent()


@pytest.fixture
def name(groups: Cgroups) -> str:
    new = str(uuid.uuid4())
    groups.create(new)
    return new


def enter(groups: Cgroups, name: str, *, session: bool = False) -> list[str]:
    entry = groups.session_entry(name) if session else groups.entry(name)
    assert entry["v2_dir"]
    return [*entry["procs"], entry["v2_dir"] + "/cgroup.procs"]


def start_inside(groups: Cgroups, name: str, script: str, *, session: bool = False):
    """Run a shell script that begins when its process is in all cgroups."""
    process = subprocess.Popen(
        ["sh", "-c", f"read go; {script}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    for file in enter(groups, name, session=session):
        Path(file).write_text(str(process.pid))
    assert process.stdin
    process.stdin.write(b"go\n")
    process.stdin.flush()
    return process


def finish(process: subprocess.Popen[bytes]) -> int:
    with process:
        return process.wait(120)


def test_life(groups, name):
    assert groups.names() == {name}
    assert groups.pids(name) == []
    groups.remove(name)
    assert groups.names() == set()
    slice_ = f"pyvz-t{os.getpid()}.slice"
    assert not any(slice_ in names for _, names, _ in os.walk("/sys/fs/cgroup"))
    groups.remove(name)  # idempotent
    assert groups.usage(name) == Usage()
    groups.kill(name)  # nothing there is fine
    assert groups.wait_empty(name, 60)


def test_create_again_removes_what_is_dead(groups, name):
    entry = groups.entry(name)
    os.makedirs(entry["v2_dir"] + "/system.slice/some.service")
    groups.create(name)
    assert os.listdir(entry["v2_dir"])
    assert not Path(entry["v2_dir"], "system.slice").exists()


def test_create_refuses_what_lives(groups, name):
    process = start_inside(groups, name, "sleep 100")
    with pytest.raises(Busy, match="in use"):
        groups.create(name)
    assert process.poll() is None
    groups.kill(name)
    finish(process)


def test_names_that_lead_elsewhere(groups):
    for bad in ("", ".", "..", "a/b", "../x", ".exec"):
        with pytest.raises(BadValue):
            groups.create(bad)


def test_memory_limits_in_every_order(groups, name):
    steps = [(200, 50), (400, None), (None, 10), (20, 0), (None, UNLIMITED), (64, 32), (300, 300)]
    memory, swap = UNLIMITED, UNLIMITED
    for new_memory, new_swap in steps:
        memory = memory if new_memory is None else new_memory * MIB
        if new_swap is not None:
            swap = new_swap if new_swap == UNLIMITED else new_swap * MIB
        limits = Limits(
            memory=None if new_memory is None else memory, swap=None if new_swap is None else swap
        )
        assert groups.apply(name, limits) == ()
        usage = groups.usage(name)
        assert (usage.memory_limit, usage.swap_limit) == (memory, swap)
    groups.apply(name, Limits(memory=UNLIMITED, swap=UNLIMITED))
    assert groups.usage(name).memory_limit == UNLIMITED


def test_memory_limit_kills_and_is_counted(groups, name):
    # With swap=0 the sum of both is hit, which recent kernels do not count.
    groups.apply(name, Limits(memory=20 * MIB, swap=2 * MIB))
    process = start_inside(groups, name, "exec /usr/bin/python3 -c 'bytearray(100 << 20)'")
    assert finish(process) == -9
    usage = groups.usage(name)
    assert usage.oom_kills == 1
    assert usage.memory_peak > 15 * MIB
    assert usage.memory_failures > 0


def test_memory_in_use_is_not_taken_away(groups, name):
    groups.apply(name, Limits(memory=200 * MIB, swap=0))
    script = "exec /usr/bin/python3 -c 'b = bytearray(100 << 20); print(1, flush=True); input()'"
    process = start_inside(groups, name, script)
    assert process.stdout.readline() == b"1\n"
    with pytest.raises(NotEnoughResources, match="could give back only"):
        groups.apply(name, Limits(memory=30 * MIB))
    usage = groups.usage(name)
    assert (usage.memory_limit, usage.swap_limit) == (200 * MIB, 0)
    assert process.poll() is None
    groups.kill(name)
    finish(process)


def test_pids_limit(groups, name):
    groups.apply(name, Limits(pids=3))
    script = "for i in 1 2 3 4 5; do sleep 1000 & done; wait"
    process = start_inside(groups, name, script)
    wait_for(lambda: groups.usage(name).pids_failures)
    groups.kill(name)
    finish(process)
    usage = groups.usage(name)
    assert usage.pids_limit == 3
    assert usage.pids_failures > 0
    groups.apply(name, Limits(pids=UNLIMITED))
    assert groups.usage(name).pids_limit == UNLIMITED


def test_cpu_limit_holds(groups, name):
    groups.apply(name, Limits(cpu_percent=20, cpu_weight=500))
    process = start_inside(groups, name, "while :; do :; done")
    begun, before = time.monotonic(), groups.usage(name).cpu_ns
    wait_for(lambda: groups.usage(name).cpu_ns - before > 0.2e9)
    used = (groups.usage(name).cpu_ns - before) / 1e9
    assert used < 0.3 * (time.monotonic() - begun) + 0.05
    groups.apply(name, Limits(cpu_percent=0))
    groups.kill(name)
    finish(process)


def test_cpus(groups, name):
    everything = os.sched_getaffinity(0)
    groups.apply(name, Limits(cpus="0"))
    process = start_inside(groups, name, "sleep 100")
    assert os.sched_getaffinity(process.pid) == {0}
    groups.apply(name, Limits(cpus="", mems=""))
    assert os.sched_getaffinity(process.pid) == everything
    with pytest.raises(BadValue, match="cpus: the kernel does not take '4096'"):
        groups.apply(name, Limits(cpus="4096"))
    groups.kill(name)
    finish(process)


@pytest.mark.requires("program:dd")
def test_io_limit_holds(groups, name, tmp_path):
    disks = blockdevice.disks_of(tmp_path)
    if not disks:
        pytest.skip("the temporary directory lies on no disk")
    file = tmp_path / "data"
    file.write_bytes(os.urandom(4 * MIB))
    os.sync()
    assert groups.apply(name, Limits(io_bps=2 * MIB, devices=(NULL,)), disks) == ()
    script = f"exec dd if={file} of=/dev/null bs=64k iflag=direct status=none"

    def seconds() -> float:
        begun = time.monotonic()
        assert finish(start_inside(groups, name, script)) == 0
        return time.monotonic() - begun

    held_back = seconds()
    assert held_back > 1.0
    assert groups.usage(name).io_read >= 4 * MIB
    groups.apply(name, Limits(io_bps=0), disks)
    assert any(seconds() < held_back for _ in range(10))  # the machine may be busy for a moment


@pytest.mark.requires("cgroup_v1")
def test_io_rules_of_former_disks_go(groups, name):
    disk = blockdevice.disks_of("/")
    if not disk:
        pytest.skip("the root lies on no disk")
    groups.apply(name, Limits(io_bps=MIB, io_iops=50), disk)
    file = groups._file("blkio", name, "blkio.throttle.write_bps_device")
    assert cgroupfs.read(file) == f"{disk[0][0]}:{disk[0][1]} {MIB}"
    left = groups.apply(name, Limits(io_bps=MIB), [])
    assert [entry.field for entry in left] == ["io_bps"]
    assert cgroupfs.read(file) == ""


def can_open(groups: Cgroups, name: str, device: str, *, session: bool = False) -> bool:
    return finish(start_inside(groups, name, f"exec 3<{device}", session=session)) == 0


def test_devices_are_denied_unless_allowed(groups, name):
    assert not can_open(groups, name, "/dev/zero")
    groups.apply(name, Limits(devices=(NULL,)))
    assert can_open(groups, name, "/dev/null")
    assert not can_open(groups, name, "/dev/zero")
    groups.apply(name, Limits(devices=(ZERO,)))
    assert can_open(groups, name, "/dev/zero")
    assert not can_open(groups, name, "/dev/null")
    assert finish(start_inside(groups, name, "exec 3>/dev/zero")) != 0  # only r


def test_device_change_does_not_disturb_the_others(groups, name):
    groups.apply(name, Limits(devices=(NULL, ZERO)))
    script = "while :; do : </dev/null || exit 1; done"
    process = start_inside(groups, name, script)
    for _ in range(20):
        groups.apply(name, Limits(devices=(NULL,)))
        groups.apply(name, Limits(devices=(NULL, ZERO, DeviceRule.parse("b *:* m"))))
    assert process.poll() is None
    groups.kill(name)
    finish(process)


def test_freeze_and_kill(groups, name):
    script = "sleep 100 & while :; do :; done"
    process = start_inside(groups, name, script)
    session = start_inside(groups, name, "sleep 100", session=True)
    groups.freeze(name)
    assert groups.frozen(name)
    used = groups.usage(name).cpu_ns
    time.sleep(0.1)
    assert groups.usage(name).cpu_ns - used < 20_000_000
    groups.thaw(name)
    assert not groups.frozen(name)
    wait_for(lambda: len(groups.pids(name)) >= 3)
    groups.freeze(name)
    groups.kill(name)  # frozen processes, too
    assert groups.wait_empty(name, 60)
    finish(process)
    finish(session)


def test_freeze_without_processes(groups, name):
    groups.freeze(name)
    groups.thaw(name)


def test_session_has_a_leaf_and_shares_the_limits(groups, name):
    groups.apply(name, Limits(devices=(NULL,), pids=5))
    leaf = groups.session_entry(name)["v2_dir"]
    assert leaf == groups.entry(name)["v2_dir"] + "/.exec"
    assert not can_open(groups, name, "/dev/zero", session=True)
    process = start_inside(groups, name, "exec sleep 100", session=True)
    assert process.pid in groups.pids(name)
    assert groups.usage(name).pids == 1
    groups.kill(name)
    finish(process)
    os.rmdir(leaf)  # the inside may do that
    assert os.path.isdir(groups.session_entry(name)["v2_dir"])


def test_session_beside_a_threaded_sibling(groups, name):
    top = groups.entry(name)["v2_dir"]
    os.mkdir(f"{top}/evil")
    Path(f"{top}/evil/cgroup.type").write_text("threaded")
    process = start_inside(groups, name, "sleep 100", session=True)
    assert process.pid in groups.pids(name)
    groups.kill(name)
    assert groups.wait_empty(name, 60)
    finish(process)


def test_inside_is_delegated_and_no_more(groups, name):
    groups.delegate(name, 524288, 524289)
    top = Path(groups.entry(name)["v2_dir"])
    owned = {p.name for p in top.iterdir() if p.stat().st_uid == 524288}
    assert (top.stat().st_uid, top.stat().st_gid) == (524288, 524289)
    assert {"cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} <= owned
    assert not {"cgroup.freeze", "cgroup.kill", "cgroup.max.depth", "memory.max"} & owned


def test_inside_cannot_nest_without_end(groups, name):
    path = groups.entry(name)["v2_dir"]
    for _ in range(MAX_DEPTH):
        path += "/d"
        os.mkdir(path)
    with pytest.raises(BlockingIOError):  # EAGAIN
        os.mkdir(path + "/d")
    groups.remove(name)
    assert groups.names() == set()


def test_remove_says_who_is_inside(groups, name, monkeypatch):
    process = start_inside(groups, name, "sleep 100")
    with pytest.raises(Busy) as error:
        cgroupfs.remove([groups.entry(name)["v2_dir"]], timeout=0.1)
    assert str(process.pid) in error.value.details
    groups.kill(name)
    finish(process)


def test_apply_without_a_cgroup(groups, name):
    groups.remove(name)
    with pytest.raises(SetError, match="has no cgroup"):
        groups.apply(name, Limits(pids=5))


@pytest.mark.requires("cgroup_v1")
def test_missing_controllers_are_named():
    found = CgroupsV1("pyvz-none.slice", {}, "/sys/fs/cgroup/unified")
    found.create("x")
    try:
        left = found.apply("x", Limits(memory=MIB, cpu_weight=1000, pids=9))
        assert {entry.field for entry in left} == {"memory", "cpu_weight", "pids"}
        assert found.usage("x") == Usage()
    finally:
        found.remove("x")
        found.remove_parent()


def test_no_cgroup2_is_explained(tmp_path):
    with pytest.raises(Unsupported) as error:
        detect("x", tmp_path)
    assert "mount -t cgroup2" in error.value.hint


def test_reading_is_cheap(groups, name):
    def seconds() -> float:
        begun = time.thread_time()
        for _ in range(100):
            groups.usage(name)
        return (time.thread_time() - begun) / 100

    assert min(seconds() for _ in range(5)) < 0.002


def test_fork_bomb_is_killed_and_removed(groups, name):
    groups.apply(name, Limits(pids=150, memory=200 * MIB, cpu_percent=100))
    script = "b() { b | b & }; b; while :; do b; done"
    process = start_inside(groups, name, script)
    process.stdout.close()
    wait_for(lambda: groups.usage(name).pids > 20)
    groups.kill(name)
    assert groups.wait_empty(name, 60)
    finish(process)
    groups.remove(name)


def test_many_at_once(groups):
    def cycle(number: int) -> None:
        for turn in range(10):
            mine = f"many-{number}-{turn}"
            groups.create(mine)
            groups.apply(mine, Limits(memory=64 * MIB, swap=0, pids=10, cpus="", devices=(NULL,)))
            assert groups.usage(mine).pids_limit == 10
            groups.remove(mine)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(cycle, range(8)))
    assert groups.names() == set()
