"""cgroup v2 on plain files that stand for the kernel's (cgroup-v2.rst says what they hold)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyvz.errors import BadValue, NotEnoughResources, Unsupported
from pyvz.linux import cgroup_v2, cgroupfs
from pyvz.linux.cgroup_v2 import CgroupsV2
from pyvz.model.limits import UNLIMITED, DeviceRule, Limits
from pyvz.model.usage import Usage

FILES = {
    "cgroup.procs": "",
    "cgroup.freeze": "0\n",
    "cgroup.kill": "",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "cgroup.type": "domain\n",
    "cpu.max": "max 100000\n",
    "cpu.weight": "100\n",
    "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 0\n",
    "cpuset.cpus": "\n",
    "cpuset.mems": "\n",
    "memory.current": "4096\n",
    "memory.peak": "8192\n",
    "memory.max": "max\n",
    "memory.swap.current": "0\n",
    "memory.swap.max": "max\n",
    "memory.events": "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n",
    "memory.stat": "anon 1024\nfile 2048\n",
    "memory.reclaim": "",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "pids.events": "max 7\n",
    "io.max": "",
    "io.weight": "default 100\n",
    "io.stat": "8:0 rbytes=100 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2\n",
}
NAME = "0f0f0f0f-1111-2222-3333-444444444444"


@pytest.fixture
def programs(monkeypatch):
    """Record the device programs instead of loading them."""
    seen: list[tuple[str, tuple[DeviceRule, ...]]] = []
    monkeypatch.setattr(
        cgroup_v2.deviceprogram, "attach", lambda path, rules: seen.append((path, tuple(rules)))
    )
    return seen


@pytest.fixture
def written(monkeypatch):
    """Record every write, which then happens."""
    seen: list[tuple[str, str]] = []
    write = cgroupfs.write

    def recorded(path: str, text: str) -> None:
        seen.append((path, text))
        write(path, text)

    monkeypatch.setattr(cgroupfs, "write", recorded)
    return seen


@pytest.fixture
def groups(tmp_path, programs):
    parent = tmp_path / "machine.slice"
    parent.mkdir()
    for directory, enabled in ((tmp_path, "cpu memory"), (parent, "")):
        (directory / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids rdma\n")
        (directory / "cgroup.subtree_control").write_text(enabled + "\n")
        (directory / "cgroup.procs").write_text("")
    return CgroupsV2(str(tmp_path), str(parent))


@pytest.fixture
def path(groups):
    groups.create(NAME)
    path = Path(groups.entry(NAME)["v2_dir"])
    for name, text in FILES.items():
        (path / name).write_text(text)
    return path


def test_create_enables_controllers_from_the_top(groups, written, tmp_path, programs):
    groups.create(NAME)
    control = [(p.removeprefix(str(tmp_path)), text) for p, text in written if "subtree" in p]
    assert control == [
        ("/cgroup.subtree_control", "+cpuset"),
        ("/cgroup.subtree_control", "+io"),
        ("/cgroup.subtree_control", "+pids"),
        *[
            ("/machine.slice/cgroup.subtree_control", f"+{name}")
            for name in ("cpu", "cpuset", "io", "memory", "pids")
        ],
    ]
    assert programs == [(f"{tmp_path}/machine.slice/{NAME}", ())]  # everything denied at first


def test_delegated_parent_is_the_only_one_touched(groups, written, tmp_path, programs):
    own = CgroupsV2(str(tmp_path), groups.parent, delegated=True)
    own.create(NAME)
    assert all("machine.slice" in path for path, _ in written)


def test_our_own_processes_leave_a_delegated_parent(groups, monkeypatch, tmp_path, programs):
    own = CgroupsV2(str(tmp_path), groups.parent, delegated=True)
    parent = Path(groups.parent)
    (parent / "cgroup.procs").write_text("11\n12\n")
    (parent / ".node").mkdir()
    (parent / ".node/cgroup.procs").touch()
    write = cgroupfs.write

    def kernel(path: str, text: str) -> None:
        if path.endswith("subtree_control") and (parent / "cgroup.procs").read_text():
            raise OSError(errno.EBUSY, "busy", path)
        if path.endswith(".node/cgroup.procs"):
            left = (parent / "cgroup.procs").read_text().split()
            left.remove(text)
            (parent / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in left))
        write(path, text)

    monkeypatch.setattr(cgroupfs, "write", kernel)
    own.create(NAME)
    assert (parent / "cgroup.procs").read_text() == ""
    assert own.names() == {NAME}  # .node is no container


def test_processes_of_others_are_left_alone(groups, monkeypatch):
    def kernel(path: str, text: str) -> None:
        raise OSError(errno.EBUSY, "busy", path)

    monkeypatch.setattr(cgroupfs, "write", kernel)
    with pytest.raises(Unsupported, match="controller cannot be enabled"):
        groups.create(NAME)


def test_controller_that_refuses_does_not_stop_the_others(groups, monkeypatch, caplog, tmp_path):
    done = []

    def kernel(path: str, text: str) -> None:
        if text == "+cpuset":
            raise OSError(errno.EINVAL, "invalid", path)
        done.append(text)

    monkeypatch.setattr(cgroupfs, "write", kernel)
    groups.create(NAME)
    assert "+pids" in done
    assert "cpuset cannot be enabled" in caplog.text


def test_entries(groups, path):
    assert groups.entry(NAME) == {"procs": [], "v2_dir": str(path)}
    session = groups.session_entry(NAME)
    assert session == {"procs": [], "v2_dir": f"{path}/.exec"}
    (path / ".exec/cgroup.type").write_text("domain invalid\n")
    assert groups.session_entry(NAME)["v2_dir"] == str(path)


def test_apply(groups, path, programs):
    allowed = (DeviceRule.parse("c 1:3 rwm"),)
    limits = Limits(
        memory=1 << 20, swap=0, cpu_weight=2000, cpu_percent=50, cpus="0-1", mems="",
        pids=50, io_weight=7, devices=allowed,
    )  # fmt: skip
    assert groups.apply(NAME, limits) == ()
    values = {name: (path / name).read_text() for name in FILES}
    assert values["memory.max"].startswith("1048576")
    assert values["memory.swap.max"].startswith("0")
    assert values["cpu.weight"].startswith("200")
    assert values["cpu.max"].startswith("50000 100000")
    assert values["cpuset.cpus"].startswith("0-1")
    assert values["cpuset.mems"] == "\n"
    assert values["pids.max"].startswith("50")
    assert values["io.weight"].startswith("default 640")
    assert programs[-1] == (str(path), allowed)


def test_io_limits(groups, path, written):
    (path / "io.max").write_text("8:16 rbps=5 wbps=max riops=max wiops=max\n")
    groups.apply(NAME, Limits(io_bps=1000), [(8, 0)])
    assert [text for file, text in written if file.endswith("io.max")] == [
        "8:0 rbps=1000 wbps=1000",
        "8:16 rbps=max wbps=max riops=max wiops=max",
    ]
    left = groups.apply(NAME, Limits(io_iops=10))
    assert left[0].field == "io_iops"


def test_what_is_missing_is_named(groups, path):
    for name in ("io.weight", "memory.swap.max", "cpuset.cpus"):
        (path / name).unlink()
    left = groups.apply(NAME, Limits(swap=0, io_weight=3, cpus="0"))
    assert {entry.field: entry.reason for entry in left} == {
        "swap": "the kernel does not account swap (swapaccount=0 or no CONFIG_SWAP)",
        "io_weight": "the kernel has neither the iocost controller nor the BFQ scheduler",
        "cpus": "the cpuset controller is not available here",
    }


def test_lowering_memory_reclaims_before(groups, path, written, monkeypatch):
    (path / "memory.current").write_text(f"{100 << 20}\n")
    (path / "memory.high").write_text("max\n")
    write = cgroupfs.write

    def kernel(file: str, text: str) -> None:
        write(file, text)
        if file.endswith("memory.reclaim"):
            (path / "memory.current").write_text(f"{(100 << 20) - int(text)}\n")

    monkeypatch.setattr(cgroupfs, "write", kernel)
    groups.apply(NAME, Limits(memory=60 << 20))
    order = [(os.path.basename(file), text) for file, text in written]
    assert order == [
        ("memory.high", str(60 << 20)),  # it cannot grow as fast as is taken
        ("memory.reclaim", str(40 << 20)),
        ("memory.max", str(60 << 20)),
        ("memory.high", "max"),
    ]


def test_memory_in_use_is_not_taken_away(groups, path):
    (path / "memory.current").write_text(f"{100 << 20}\n")
    (path / "memory.stat").write_text(f"anon {90 << 20}\nfile 0\n")
    with pytest.raises(NotEnoughResources):
        groups.apply(NAME, Limits(memory=60 << 20))
    assert (path / "memory.max").read_text() == "max\n"


def test_refused_value(groups, path, monkeypatch):
    def kernel(file: str, text: str) -> None:
        raise OSError(errno.EINVAL, "invalid", file)

    monkeypatch.setattr(cgroupfs, "write", kernel)
    with pytest.raises(BadValue, match="cpus: the kernel does not take '99'"):
        groups.apply(NAME, Limits(cpus="99"))


def test_usage(groups, path):
    assert groups.usage(NAME) == Usage(
        memory=4096,
        memory_peak=8192,
        memory_limit=UNLIMITED,
        memory_failures=4,
        swap=0,
        swap_limit=UNLIMITED,
        cpu_ns=1_500_000,
        oom_kills=1,
        pids=3,
        pids_limit=UNLIMITED,
        pids_failures=7,
        io_read=101,
        io_written=22,
    )


def test_usage_of_nothing(groups):
    assert groups.usage(NAME) == Usage()


def test_old_kernel_without_peak(groups, path):
    (path / "memory.peak").unlink()
    assert groups.usage(NAME).memory_peak is None


def test_freeze_waits_for_the_kernel(groups, path):
    (path / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    groups.freeze(NAME)
    assert (path / "cgroup.freeze").read_text().startswith("1")
    assert groups.frozen(NAME) or (path / "cgroup.freeze").read_text() == "1\n"
    groups.thaw(NAME)
    assert not groups.frozen(NAME)


def test_kill(groups, path):
    groups.kill(NAME)
    assert (path / "cgroup.kill").read_text() == "1"


def test_pids_of_the_whole_subtree(groups, path):
    (path / "cgroup.procs").write_text("5\n0\n")
    (path / "system.slice/a.service").mkdir(parents=True)
    (path / "system.slice/cgroup.procs").write_text("")
    (path / "system.slice/a.service/cgroup.procs").write_text("7\n6\n")
    assert groups.pids(NAME) == [5, 6, 7]
