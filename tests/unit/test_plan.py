"""The plan of a start: golden order, what is left out when, JSON there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyvz.container import capability, operation
from pyvz.container.devices import DeviceNode
from pyvz.container.operation import Attach, Loopback, Mask, Mount, Node, NodeBind, StartPlan
from pyvz.container.plan import namespaces, plan
from pyvz.container.spec import Bind, ContainerSpec, environment
from pyvz.linux import syscall
from pyvz.model.limits import IdRange, Limits

SPEC = ContainerSpec(
    uuid="u",
    hostname="host",
    root=Path("/vz/root/u"),
    argv=("/sbin/init",),
    env=environment("u"),
    ids=IdRange(524288),
    caps=capability.DEFAULT,
    nesting=False,
    limits=Limits(),
)

GOLDEN = """\
making the directory /proc
mounting proc on /proc
making the directory /sys
mounting sysfs on /sys
making the directory /dev
mounting tmpfs on /dev
making the directory /dev/.empty
making the file /dev/.empty/file
making the directory /dev/.empty/directory
binding the node's /dev/null on /dev/null
binding the node's /dev/zero on /dev/zero
binding the node's /dev/full on /dev/full
binding the node's /dev/random on /dev/random
binding the node's /dev/urandom on /dev/urandom
binding the node's /dev/tty on /dev/tty
making the directory /dev/pts
mounting devpts on /dev/pts
making the directory /dev/shm
mounting tmpfs on /dev/shm
making the directory /dev/mqueue
mounting mqueue on /dev/mqueue
linking /dev/ptmx to pts/ptmx
linking /dev/fd to /proc/self/fd
linking /dev/stdin to /proc/self/fd/0
linking /dev/stdout to /proc/self/fd/1
linking /dev/stderr to /proc/self/fd/2
making the cgroup namespace
mounting cgroup2 on /sys/fs/cgroup
mounting tmpfs on /run
making /proc/sys read-only
making /proc/sysrq-trigger read-only
making /proc/irq read-only
making /proc/bus read-only
making /proc/fs read-only
masking /proc/kcore
masking /proc/keys
masking /proc/timer_list
masking /proc/sched_debug
masking /proc/kmsg
masking /proc/latency_stats
masking /proc/acpi
masking /proc/scsi
masking /proc/asound
masking /sys/firmware
masking /sys/kernel/debug
masking /sys/devices/virtual/powercap
masking /sys/block
masking /sys/class/block
masking /sys/dev/block
masking /sys/devices/virtual/block
masking /proc/partitions
masking /proc/diskstats
making /sys read-only
setting the host name
bringing the interface lo up
making the console /dev/console
"""


def described(spec: ContainerSpec) -> list[str]:
    return [step.describe() for step in plan(spec).operations]


def kinds(spec: ContainerSpec) -> set[type]:
    return {type(step) for step in plan(spec).operations}


def test_golden_order() -> None:
    assert described(SPEC) == GOLDEN.splitlines()


def test_privileged_makes_its_own_nodes() -> None:
    found = kinds(SPEC._replace(ids=None))
    assert Node in found
    assert NodeBind not in found


def test_masks_are_left_out_only_for_nesting_in_a_user_namespace() -> None:
    assert Mask not in kinds(SPEC._replace(nesting=True))
    assert Mask in kinds(SPEC._replace(nesting=True, ids=None))


def test_shared_network_has_the_nodes_sysfs() -> None:
    spec = SPEC._replace(network_namespace=False)
    assert "binding the node's /sys on /sys" in described(spec)
    assert Loopback not in kinds(spec)
    assert not namespaces(spec) & syscall.CLONE_NEWNET


@pytest.mark.parametrize(
    ("change", "flag"),
    [({"ids": None}, syscall.CLONE_NEWUSER), ({"time_namespace": False}, syscall.CLONE_NEWTIME)],
)
def test_namespaces(change: dict[str, object], flag: int) -> None:
    assert namespaces(SPEC) & flag
    assert not namespaces(SPEC._replace(**change)) & flag


def test_binds_come_before_protections_and_devices_have_parents() -> None:
    node = DeviceNode("/dev/net/deep/tun", "c", 10, 200)
    spec = SPEC._replace(binds=(Bind(Path("/a"), "/b"),), device_nodes=(node,))
    steps = plan(spec).operations
    kinds_in_order = [type(step) for step in steps]
    assert kinds_in_order.index(Attach) < kinds_in_order.index(Mask)
    words = described(spec)
    assert words.index("making the directory /dev/net") < words.index(
        "making the directory /dev/net/deep"
    )


def test_json_there_and_back() -> None:
    made = plan(SPEC._replace(binds=(Bind(Path("/a"), "/b"),)))
    data = json.loads(json.dumps(made.to_json()))
    back = StartPlan.from_json(data)
    assert json.dumps(back.to_json()) == json.dumps(made.to_json())
    assert back.operations[1] == Mount("/proc", "proc", 14)
    assert back.argv == made.argv
    data["operations"].append(["Explode"])
    with pytest.raises(KeyError):
        StartPlan.from_json(data)


def test_every_operation_describes_itself() -> None:
    for kind in operation._KINDS.values():
        fields = [0 if name in {"number", "mode"} else "/x" for name in kind._fields]
        assert kind(*fields).describe()
