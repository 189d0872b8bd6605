"""Death at every step of what copies or changes a disk: afterwards all is as before, or as after.

The container is whole, at one place, with its content; nothing is mounted, attached or left over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import faults
import places
from homes import MAX_STEPS, UUID
from networld import wait_for
from ploops import digest, mounted, ploop_node, take_down, write
from pyvz.linux import loopdevice, mount
from pyvz.operations import clone, compact, convert, home, leftovers, provision, relocate
from pyvz.operations.node import Node
from pyvz.store.journal import Journal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with ploop_node(tmp_path) as made:
        write(made, "kept")
        with places.file_system("xfs", made.paths.root / "other", 1 << 30):
            try:
                yield made
            finally:
                take_down(made.paths.root / "vz")


Verb = Callable[[Node], object]
LINKED = clone.CloneOptions(linked=True)
SWEEP: dict[str, Verb] = {
    "linked clone": lambda node: clone.clone(node, "ct1", "ct2", options=LINKED),
    "move": lambda node: relocate.move(node, "ct1", "/other"),
    "convert": lambda node: convert.convert(node, "ct1", "simfs"),
    "compact": lambda node: compact.compact(node, "ct1"),
}


def content(node: Node, ref: str) -> str:
    with mounted(node, ref) as root:
        assert (root / "file").read_text() == "kept"
        return digest(root / "etc")


def places_of(node: Node) -> list[str]:
    """Every home, and everything that is left beside one."""
    found: list[str] = []
    for parent in (node.paths.private, node.paths.root / "other"):
        found += [entry.name for entry in parent.iterdir() if parent.is_dir()]
    return sorted(found)


@pytest.mark.parametrize(
    ("verb", "first", "by"),
    [
        ("move", 4, 17),
        *(pytest.param(verb, 1, 1, marks=pytest.mark.long) for verb in SWEEP),
    ],
)
def test_death_at_every_step(node: Node, verb: str, first: int, by: int) -> None:
    before = content(node, "ct1")
    for number in range(first, MAX_STEPS * 2, by):
        died = faults.killed_at(number, lambda: SWEEP[verb](node), node.paths.root)
        leftovers.repair_all(node)
        assert Journal.all(node.paths) == []
        root = os.path.realpath(node.paths.root)
        left = [entry.target for entry in mount.mounts(root)]
        assert left == [root, f"{root}/other"], f"step {number}"
        wait_for(lambda: len(loopdevice.below(Path(os.path.realpath(node.paths.root)))) == 1)
        known = [env.uuid for env in node.registry.environments()]
        assert places_of(node) == sorted(known), f"step {number}"
        contents = {uuid: content(node, uuid) for uuid in known}  # a clone has other keys
        assert contents[UUID] == before, f"step {number}"
        _put_back(node, verb)
        if not died:
            return
    pytest.fail("it does not end")


def _put_back(node: Node, verb: str) -> None:
    if home.taken(node, "ct2"):
        provision.delete(node, "ct2")
    if verb == "move" and node.registry.resolve("ct1").home.parent != node.paths.private:
        relocate.move(node, "ct1", "/vz/private")
    if verb == "convert" and (node.registry.resolve("ct1").home / "fs").is_dir():
        convert.convert(node, "ct1", "ploop")
