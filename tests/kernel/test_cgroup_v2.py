"""CgroupsV2 on the real cgroup2 tree of this machine, which may carry few controllers or none.

What needs the memory, cpu, io and pids controllers is tested in tests/machine (a node with v2
only) and, on plain files, in tests/unit/test_linux_cgroup_v2.py.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvz.errors import Unsupported
from pyvz.linux import cgroup_v2, cgroupfs, deviceprogram
from pyvz.linux.cgroup import delegated_unit
from pyvz.linux.cgroup_v2 import CgroupsV2
from pyvz.linux.mount import mounts
from pyvz.model.limits import DeviceRule, Limits

pytestmark = [pytest.mark.requires("cgroup2"), pytest.mark.usefixtures("cgroup_top")]
NAME = "c2c2c2c2-0000-0000-0000-000000000000"


@pytest.fixture
def top() -> str:
    return next(entry.target for entry in mounts() if entry.fstype == "cgroup2")


@pytest.fixture
def parent(top) -> Iterator[str]:
    path = f"{top}/pyvz-v{os.getpid()}.slice"
    os.mkdir(path)
    yield path
    cgroupfs.remove([path])


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "100"]) as process:
        yield process
        process.kill()


def test_life_with_devices(top, parent, sleeper):
    groups = CgroupsV2(top, parent)
    groups.create(NAME)
    path = groups.entry(NAME)["v2_dir"]
    assert len(deviceprogram.attached(path)) == 1
    groups.apply(NAME, Limits(devices=(DeviceRule.parse("c 1:3 rwm"),)))
    assert len(deviceprogram.attached(path)) == 1
    Path(groups.session_entry(NAME)["v2_dir"], "cgroup.procs").write_text(str(sleeper.pid))
    assert groups.pids(NAME) == [sleeper.pid]
    groups.freeze(NAME)
    assert groups.frozen(NAME)
    assert not groups.wait_empty(NAME, 0.05)
    groups.kill(NAME)
    assert groups.wait_empty(NAME, 60)
    assert sleeper.wait(60) == -9
    groups.remove(NAME)
    groups.remove(NAME)
    assert groups.names() == set()


def test_limits_without_their_controllers_are_named(top, parent):
    groups = CgroupsV2(top, parent)
    groups.create(NAME)
    if "memory" in (cgroupfs.read(f"{top}/cgroup.controllers") or ""):
        pytest.skip("this tree has the memory controller")
    left = groups.apply(NAME, Limits(memory=1 << 20, pids=5, cpu_percent=10))
    assert {entry.field for entry in left} == {"memory", "pids", "cpu_percent"}
    assert groups.usage(NAME).cpu_ns is not None  # cpu.stat is there without a controller
    groups.remove(NAME)


@pytest.fixture
def hugetlb(top, monkeypatch) -> Iterator[None]:
    """Let the one controller that hybrid machines leave to v2 stand for all of them."""
    control = f"{top}/cgroup.subtree_control"
    if "hugetlb" not in (cgroupfs.read(f"{top}/cgroup.controllers") or ""):
        pytest.skip("the cgroup2 tree has no hugetlb controller to play with")
    enabled = "hugetlb" in (cgroupfs.read(control) or "")
    monkeypatch.setattr(cgroup_v2, "CONTROLLERS", ("hugetlb",))
    cgroupfs.write(control, "+hugetlb")
    yield
    if not enabled:
        with contextlib.suppress(OSError):
            cgroupfs.write(control, "-hugetlb")


def test_delegated_parent_is_vacated_for_controllers(hugetlb, top, parent, sleeper):
    cgroupfs.write(f"{parent}/cgroup.procs", str(sleeper.pid))
    groups = CgroupsV2(top, parent, delegated=True)
    groups.create(NAME)
    assert cgroupfs.read(f"{parent}/cgroup.subtree_control") == "hugetlb"
    assert cgroupfs.read(f"{parent}/.node/cgroup.procs") == str(sleeper.pid)
    assert os.path.exists(f"{groups.entry(NAME)['v2_dir']}/hugetlb.2MB.max")
    assert groups.names() == {NAME}
    unit = os.path.relpath(parent, top)
    assert delegated_unit(unit, top) is None
    os.setxattr(parent, "trusted.delegate", b"1")
    assert delegated_unit(unit, top) == Path(parent)
    sleeper.kill()
    sleeper.wait()
    groups.remove(NAME)


def test_strangers_in_the_parent_are_left_alone(hugetlb, top, parent, sleeper):
    cgroupfs.write(f"{parent}/cgroup.procs", str(sleeper.pid))
    with pytest.raises(Unsupported, match="hugetlb controller cannot be enabled"):
        CgroupsV2(top, parent).create(NAME)
    assert cgroupfs.read(f"{parent}/cgroup.procs") == str(sleeper.pid)
    sleeper.kill()
    sleeper.wait()


def test_session_beside_enabled_controllers(hugetlb, top, parent, sleeper):
    """As with systemd inside: controllers are on in the container's root, init is in a child."""
    groups = CgroupsV2(top, parent)
    groups.create(NAME)
    path = groups.entry(NAME)["v2_dir"]
    os.mkdir(f"{path}/init.scope")
    cgroupfs.write(f"{path}/init.scope/cgroup.procs", str(sleeper.pid))
    cgroupfs.write(f"{path}/cgroup.subtree_control", "+hugetlb")
    with subprocess.Popen(["sleep", "100"]) as session:
        with pytest.raises(OSError, match="busy"):
            cgroupfs.write(f"{path}/cgroup.procs", str(session.pid))
        leaf = groups.session_entry(NAME)["v2_dir"]
        cgroupfs.write(f"{leaf}/cgroup.procs", str(session.pid))
        assert groups.pids(NAME) == sorted([sleeper.pid, session.pid])
        groups.kill(NAME)
        assert groups.wait_empty(NAME, 60)
    sleeper.wait(60)
    groups.remove(NAME)


def test_no_such_unit(top):
    assert delegated_unit("machine.slice/pyvz-nothing.service", top) is None
