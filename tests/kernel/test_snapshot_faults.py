"""Errors and kill -9 at every step of taking, switching to and deleting a snapshot.

Afterwards the container's content, its images, its tree and its configuration are those before or
those after, and nothing is mounted, attached, frozen or left over.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import faults
from ploops import digest, mounted, names_of, ploop_node, write
from pyvz.errors import VZError
from pyvz.linux import loopdevice, mount
from pyvz.operations import configure, lifecycle, provision, snapshot
from pyvz.operations.configure import SetRequest
from pyvz.operations.node import Node
from pyvz.store import savedstates
from pyvz.store.journal import Journal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

MAX = 400
GUIDS = [f"{{0000000{n}-1111-4222-8333-444444444444}}" for n in range(3)]
State = tuple[object, ...]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with ploop_node(tmp_path) as made:
        set_(made, ("device-add", "hdd"), ("size", "64M"), ("mnt", "/data"))
        for number, text in enumerate(("one", "two")):
            write(made, text)
            write(made, text, "data/file")
            set_(made, ("cpuunits", str(1000 + number)))
            snapshot.create(made, "ct1", snapshot.Wanted(guid=GUIDS[number]))
        write(made, "three")
        write(made, "three", "data/file")
        yield made


def set_(node: Node, *options: tuple[str, str | None]) -> None:
    configure.set_options(node, "ct1", SetRequest("prlctl", options))


def state(node: Node) -> State:
    """All that a user sees: content, snapshots (without the time), configuration, images."""
    env = node.registry.resolve("ct1")
    with mounted(node) as root:
        content = digest(root)
    states = savedstates.load(env.home)
    tree = [(item.guid, item.parent) for item in states.items]
    confs = sorted(path.name for path in (env.home / "dump").iterdir())
    disks = ("root.hdd", "hdd1.hdd")
    images = [len(names_of(env, disk)) for disk in disks]
    units = node.registry.config(env).cpu.units
    strays = [p.name for d in disks for p in (env.home / d).glob(".*")]
    return content, tree, states.current, confs, images, units, strays


def nothing_left(node: Node) -> None:
    real = os.path.realpath(node.paths.root)
    assert [e.target for e in mount.mounts(real) if e.target != real] == []
    assert loopdevice.below(node.paths.private) == []
    assert Journal.all(node.paths) == []


def sweep(node: Node, verb: Callable[[], object], steps: range) -> None:
    """Kill the verb at these steps; put the world back each time."""
    env = node.registry.resolve("ct1")
    copy = env.home.with_name("copy")
    shutil.copytree(env.home, copy, symlinks=True)  # the images are sparse and small
    before = state(node)
    verb()
    after = state(node)
    _put_back(env.home, copy)
    assert state(node) == before
    for number in steps:
        died = faults.killed_at(number, verb, node.paths.root)
        provision.recover(node)
        nothing_left(node)
        assert state(node) in (before, after), f"step {number}"
        if state(node) == after:
            _put_back(env.home, copy)
        if not died:
            return
    pytest.fail("the verb has no end")


def _put_back(home: Path, copy: Path) -> None:
    os.system(f"rm -rf {home} && cp -a --reflink=always {copy} {home}")


VERBS: dict[str, Callable[[Node], object]] = {
    "create": lambda node: snapshot.create(node, "ct1", snapshot.Wanted(guid=GUIDS[2])),
    "switch": lambda node: snapshot.switch(node, "ct1", GUIDS[0]),
    "delete": lambda node: snapshot.delete(node, "ct1", GUIDS[0], children=True),
    "delete one": lambda node: snapshot.delete(node, "ct1", GUIDS[0]),
}


@pytest.mark.parametrize("stride", faults.strides(17))
@pytest.mark.parametrize("verb", VERBS)
def test_killed(node: Node, verb: str, stride: int) -> None:
    sweep(node, lambda: VERBS[verb](node), faults.steps(stride, MAX, 1 + len(verb)))


@pytest.mark.parametrize("act", [faults.fail, faults.full], ids=["error", "full"])
@pytest.mark.parametrize("verb", ["create", "switch"])
@pytest.mark.parametrize("stride", faults.strides(13))
def test_failing(node: Node, verb: str, act: faults.Act, stride: int) -> None:
    before = state(node)
    for number in faults.steps(stride, MAX, len(verb)):
        try:
            with faults.at_step(number, act, node.paths.root) as seen:
                VERBS[verb](node)
        except (VZError, OSError):
            pass
        if len(seen) < number:
            return
        provision.recover(node)
        nothing_left(node)
        now = state(node)
        if now != before:  # it failed after its commit, and was finished
            VERBS["delete"](node) if verb == "create" else None
            return
    pytest.fail("the verb has no end")


def test_killed_while_its_disks_are_frozen(node: Node) -> None:
    lifecycle.mount(node, "ct1")
    root = node.root(node.registry.resolve("ct1"))
    try:
        for number in range(8, MAX, 5):
            died = faults.killed_at(number, lambda: VERBS["create"](node), node.paths.root)
            provision.recover(node)
            for place in (root, root / "data"):  # a write to a frozen one would never return
                code = os.system(f"timeout 100 sh -c 'echo x > {place}/probe && sync -f {place}'")
                assert code == 0, number
            if not died:
                break
            assert len(savedstates.load(node.registry.resolve("ct1").home).items) in {2, 3}
            if savedstates.load(node.registry.resolve("ct1").home).has(GUIDS[2]):
                break
    finally:
        lifecycle.umount(node, "ct1")
    nothing_left(node)


@pytest.mark.long
def test_the_hundredth_costs_what_the_first_costs(node: Node) -> None:
    def seconds() -> float:
        began = time.perf_counter()
        snapshot.create(node, "ct1")
        return time.perf_counter() - began

    took = [seconds() for _ in range(100)]
    first, last = sorted(took[:15])[7], sorted(took[-15:])[7]
    assert last < 2 * first + 0.02, (first, last)
