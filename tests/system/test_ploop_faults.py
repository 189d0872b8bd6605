"""Death at every step of the verbs that make, move and remove homes with images in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import faults
from homes import MAX_STEPS, UUID, request
from leaks import close_node
from networld import wait_for
from pyvz.linux import loopdevice, mount
from pyvz.model.status import Status
from pyvz.operations import clone, home, leftovers, provision
from pyvz.operations.node import Node
from pyvz.store.journal import Journal
from worlds import make_archive, make_node


@pytest.fixture
def node(short_root: Path) -> Iterator[Node]:
    """A node whose pool and golden image are there."""
    made = make_node(short_root / "n", layout="ploop")
    (made.paths.template / "cache").mkdir(parents=True)
    archive = make_archive(short_root)
    archive.rename(made.paths.template / "cache" / archive.name)
    provision.create(made, request())
    provision.delete(made, "ct1")
    yield made
    mount.umount(made.paths.ve_root, recursive=True, lazy=True)
    close_node(made.paths.root)


def attached(node: Node) -> list[Path]:
    return loopdevice.below((node.paths.vz / "pool").resolve())


Verb = Callable[[Node], object]
SWEEP: dict[str, tuple[Verb, Verb]] = {
    "create": (lambda node: None, lambda node: provision.create(node, request())),
    "delete": (
        lambda node: provision.create(node, request()),
        lambda node: provision.delete(node, "ct1"),
    ),
    "clone": (
        lambda node: provision.create(node, request()),
        lambda node: clone.clone(node, "ct1", "ct2"),
    ),
}


@pytest.mark.parametrize("verb", SWEEP)
def test_death_at_every_step(node: Node, verb: str) -> None:
    prepare, run = SWEEP[verb]
    prepare(node)
    homes = node.paths.vz / "pool/default"
    before = sorted(path.name for path in homes.iterdir())
    for number in range(1, MAX_STEPS, 3):
        died = faults.killed_at(number, lambda: run(node), node.paths.root)
        leftovers.repair_all(node)
        assert Journal.all(node.paths) == []
        wait_for(lambda: not attached(node))  # who died may hold it for a moment
        assert [entry.target for entry in mount.mounts(node.paths.ve_root.resolve())] == []
        now = sorted(path.name for path in homes.iterdir())
        assert all(node.status(env) == Status.STOPPED for env in node.registry.environments())
        assert not [name for name in now if name.startswith((".create-", ".delete-"))]
        if now != before:  # it had been committed
            _reset(node, verb)
            prepare(node)
        if not died:
            break
    assert number > 5


def _reset(node: Node, verb: str) -> None:
    if verb == "clone" and home.taken(node, "ct2"):
        provision.delete(node, "ct2")
    if home.taken(node, UUID):
        provision.delete(node, UUID)
