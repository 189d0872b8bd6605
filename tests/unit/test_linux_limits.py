"""What is written for which limits: pure functions (model/limits.py, linux/cgroup_limits.py)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.errors import BadValue
from pyvz.linux import cgroup_limits as plan
from pyvz.model.limits import UNLIMITED, DeviceRule, IdRange, Limits

MIB = 1 << 20
sizes = st.sampled_from([4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, UNLIMITED])


def rule(text: str) -> DeviceRule:
    return DeviceRule.parse(text)


def texts(writes: list[plan.Write]) -> list[str]:
    return [f"{write.file} {write.text}" for write in writes]


@pytest.mark.parametrize("text", ["c 1:3 rwm", "b *:* m", "c 136:* rw", "b 8:0 r"])
def test_device_rule_round_trip(text):
    assert str(rule(text)) == text


@pytest.mark.parametrize(
    "text", ["", "a *:* rwm", "c 1:3", "c 1:3 x", "c 1:3 rwmr", "c -1:3 r", "c 1:3 r\n"]
)
def test_bad_device_rules(text):
    with pytest.raises(BadValue):
        rule(text)


def test_device_rule_access_is_canonical():
    assert str(rule("c 1:3 mwr")) == "c 1:3 rwm"


def test_id_range():
    ids = IdRange(524288)
    assert (ids.first, ids.count) == (524288, 65536)
    assert 524288 in ids
    assert 589824 not in ids


@pytest.mark.parametrize(
    ("units", "shares", "weight"),
    [(1000, 1024, 100), (8, 8, 1), (500000, 262144, 10000), (2000, 2048, 200), (1, 2, 1)],
)
def test_cpu_units(units, shares, weight):
    assert plan.cpu_shares(units) == shares
    assert plan.cpu_weight(units) == weight


@pytest.mark.parametrize(
    ("percent", "quota"),
    [(100, 100_000), (25, 25_000), (0, None), (UNLIMITED, None), (350, 350_000)],
)
def test_cpu_quota(percent, quota):
    assert plan.cpu_quota(percent) == quota


def kernel(memory: int, memsw: int, writes: list[plan.Write]) -> tuple[int, int]:
    """What the v1 memory controller does with writes: it refuses memory > memory+swap."""
    for write in writes:
        value = UNLIMITED if write.text == "-1" else int(write.text)
        if write.file == "memory.limit_in_bytes":
            memory = value
        else:
            memsw = value
        assert memory <= memsw, "the kernel would answer EINVAL"
    return memory, memsw


@given(sizes, sizes, st.none() | sizes, st.none() | sizes)
def test_v1_memory_order_is_always_accepted(memory, swap, new_memory, new_swap):
    memsw = min(memory + swap, UNLIMITED)
    limits = Limits(memory=new_memory, swap=new_swap)
    after, both = kernel(memory, memsw, plan.v1_memory(limits, memory, memsw))
    assert after == (memory if new_memory is None else new_memory)
    if new_swap is not None:
        assert both == min(after + new_swap, UNLIMITED)
    elif UNLIMITED not in (memory, memsw, after):
        assert both - after == swap  # the swap beside the memory stays as it was


def test_v1_memory_without_swap_accounting():
    assert texts(plan.v1_memory(Limits(memory=MIB, swap=MIB), UNLIMITED, None)) == [
        "memory.limit_in_bytes 1048576"
    ]
    assert plan.v1_memory(Limits(swap=MIB), UNLIMITED, None) == []


def test_v1_cpu_pids():
    limits = Limits(cpu_weight=1000, cpu_percent=150, pids=UNLIMITED)
    assert texts(plan.v1_cpu(limits) + plan.v1_pids(limits)) == [
        "cpu.shares 1024",
        "cpu.cfs_period_us 100000",
        "cpu.cfs_quota_us 150000",
        "pids.max max",
    ]
    assert texts(plan.v1_cpu(Limits(cpu_percent=0))) == ["cpu.cfs_quota_us -1"]
    assert plan.v1_cpu(Limits()) + plan.v1_pids(Limits()) == []


def test_v1_io_takes_former_rules_away():
    present = {"blkio.throttle.read_bps_device": ["8:0", "8:16"]}
    assert texts(plan.v1_io(Limits(io_bps=5), [(8, 0)], present)) == [
        "blkio.throttle.read_bps_device 8:0 5",
        "blkio.throttle.read_bps_device 8:16 0",
        "blkio.throttle.write_bps_device 8:0 5",
    ]
    assert plan.v1_io(Limits(), [(8, 0)], present) == []
    assert texts(plan.v1_io(Limits(io_iops=UNLIMITED), [(8, 0)], {})) == [
        "blkio.throttle.read_iops_device 8:0 0",
        "blkio.throttle.write_iops_device 8:0 0",
    ]


rules = st.lists(
    st.builds(
        DeviceRule,
        st.sampled_from("bc"),
        st.sampled_from([None, 1, 5]),
        st.sampled_from([None, 0, 3]),
        st.sampled_from(["r", "w", "m", "rw", "rwm"]),
    ),
    max_size=6,
)


@given(rules, rules)
def test_v1_devices_reach_exactly_the_wanted(present, wanted):
    state = {r[:3]: set(r.access) for r in plan.merge(present)}
    for write in plan.v1_devices(wanted, present):
        entry = rule(write.text)
        held = state.setdefault(entry[:3], set())
        if write.file == "devices.allow":
            held |= set(entry.access)
        else:
            held -= set(entry.access)
    state = {key: access for key, access in state.items() if access}
    assert state == {r[:3]: set(r.access) for r in plan.merge(wanted)}
    assert not [w for w in plan.v1_devices(wanted, present) if w.text.startswith("a")]


def test_v2_writes():
    limits = Limits(
        memory=MIB,
        swap=UNLIMITED,
        cpu_weight=1000,
        cpu_percent=0,
        pids=7,
        io_bps=100,
        io_iops=0,
    )
    assert texts(plan.v2_writes(limits, [(8, 0)])) == [
        "pids.max 7",
        "memory.max 1048576",
        "memory.swap.max max",
        "cpu.weight 100",
        "cpu.max max 100000",
        "io.max 8:0 rbps=100 wbps=100",
        "io.max 8:0 riops=max wiops=max",
    ]
    assert plan.v2_writes(Limits(), [(8, 0)]) == []


def test_io_weights_rise():
    assert len(plan.IO_WEIGHTS) == 8
    assert all(a < b for a, b in itertools.pairwise(plan.IO_WEIGHTS))
