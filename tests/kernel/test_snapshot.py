"""Snapshots of a container that does not run: content, tree, configuration, refusals."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from homes import cast_events
from ploops import mounted, names_of, ploop_node, read, write
from pyvz.errors import (
    AlreadyExists,
    AlreadyMounted,
    BadValue,
    Busy,
    SnapshotNotFound,
    Unsupported,
)
from pyvz.linux import loopdevice
from pyvz.operations import clone, configure, lifecycle, provision, snapshot
from pyvz.operations.configure import SetRequest
from pyvz.operations.node import Node
from pyvz.store import savedstates

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with ploop_node(tmp_path) as made:
        yield made


def tree(node: Node) -> savedstates.SavedStates:
    return savedstates.load(node.registry.resolve("ct1").home)


def test_old_content_comes_back(node: Node) -> None:
    env = node.registry.resolve("ct1")
    write(node, "one")
    first = snapshot.create(node, "ct1", snapshot.Wanted(name="first", description="<&]]>")).guid
    write(node, "two")
    second = snapshot.create(node, "ct1").guid
    write(node, "three")
    assert snapshot.switch(node, "ct1", first) == first
    assert read(node) == "one"
    snapshot.switch(node, "ct1", second.strip("{}").upper())
    assert read(node) == "two"
    rows = snapshot.rows(node, "ct1")
    assert [(row.state.guid, row.state.parent, row.current) for row in rows] == [
        (first, "", False),
        (second, first, True),
    ]
    assert rows[0].state.description == "<&]]>"
    assert len(names_of(env)) == 3
    snapshot.delete(node, "ct1", first)
    assert read(node) == "two"
    assert [row.state.parent for row in snapshot.rows(node, "ct1")] == [""]
    assert not (env.home / "dump" / f"{first}.ve.conf").exists()
    assert {"ve-snapshot", "ve-snapshot-switch", "ve-snapshot-delete"} <= set(
        cast_events(node).names
    )


def test_a_switch_without_id_goes_to_the_current_one(node: Node) -> None:
    with pytest.raises(SnapshotNotFound):
        snapshot.switch(node, "ct1")
    write(node, "one")
    guid = snapshot.create(node, "ct1").guid
    write(node, "two")
    assert snapshot.switch(node, "ct1") == guid
    assert read(node) == "one"


def test_configuration_comes_back_and_identity_stays(node: Node) -> None:
    def set_(*options: tuple[str, str | None]) -> None:
        configure.set_options(node, "ct1", SetRequest("prlctl", options))

    set_(("cpuunits", "2000"))
    guid = snapshot.create(node, "ct1").guid
    set_(("cpuunits", "3000"), ("description", "later"))
    snapshot.switch(node, "ct1", guid)
    env = node.registry.resolve("ct1")
    assert node.registry.config(env).cpu.units == 2000
    assert node.registry.conf_file(env).get("NAME") == "ct1"
    assert "later" not in (env.home / "ve.conf").read_text()


def test_children_go_too_or_move_up(node: Node) -> None:
    guids = [snapshot.create(node, "ct1").guid for _ in range(3)]
    snapshot.switch(node, "ct1", guids[0])
    side = snapshot.create(node, "ct1").guid
    snapshot.delete(node, "ct1", guids[1])
    assert tree(node).get(guids[2]).parent == guids[0]
    snapshot.delete(node, "ct1", guids[0], children=True)
    assert tree(node) == savedstates.SavedStates()
    assert names_of(node.registry.resolve("ct1")) == [names_of(node.registry.resolve("ct1"))[0]]
    with pytest.raises(SnapshotNotFound):
        snapshot.delete(node, "ct1", side)


def test_mounted_snapshots(node: Node, tmp_path: Path) -> None:
    write(node, "one")
    guid = snapshot.create(node, "ct1").guid
    write(node, "two")
    target = tmp_path / "snap"
    place = snapshot.mount_snapshot(node, "ct1", guid, str(target))
    assert Path(place, "file").read_text() == "one"
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").write_text("")
    row = snapshot.rows(node, "ct1")[0]
    assert row.target == place
    assert row.device.startswith("/dev/loop")
    with pytest.raises(AlreadyMounted):
        snapshot.mount_snapshot(node, "ct1", guid, str(tmp_path / "other"))
    with pytest.raises(Busy):
        snapshot.delete(node, "ct1", guid)
    with pytest.raises(Busy):
        provision.delete(node, "ct1")
    snapshot.umount_snapshot(node, "ct1", guid)
    snapshot.umount_snapshot(node, "ct1", guid)
    assert snapshot.rows(node, "ct1")[0].target == ""
    assert loopdevice.below(node.paths.private) == []
    for bad in ("relative", str(node.root(node.registry.resolve("ct1")) / "x"), "/etc/passwd"):
        with pytest.raises(BadValue):
            snapshot.mount_snapshot(node, "ct1", guid, bad)


def test_refusals_change_nothing(node: Node) -> None:
    guid = snapshot.create(node, "ct1").guid
    before = (tree(node), names_of(node.registry.resolve("ct1")))
    with pytest.raises(AlreadyExists):
        snapshot.create(node, "ct1", snapshot.Wanted(guid=guid))
    for bad in ("", "nonsense", "../../etc", "{123}"):
        with pytest.raises(BadValue):
            snapshot.create(node, "ct1", snapshot.Wanted(guid=bad or "x"))
    for text in ("a\0b", "\ud800", "x" * 2000):
        with pytest.raises(BadValue):
            snapshot.create(node, "ct1", snapshot.Wanted(name=text))
    for verb in (snapshot.switch, snapshot.delete):
        with pytest.raises(SnapshotNotFound):
            verb(node, "ct1", "11111111-2222-4333-8444-555555555555")
    assert (tree(node), names_of(node.registry.resolve("ct1"))) == before


def test_while_mounted(node: Node) -> None:
    with mounted(node) as root:
        (root / "file").write_text("one")
        guid = snapshot.create(node, "ct1").guid
        (root / "file").write_text("two")
    lifecycle.mount(node, "ct1")
    snapshot.switch(node, "ct1", guid)  # unmounts it, as the original does
    assert read(node) == "one"


def test_a_driver_without_snapshots_says_so(node: Node) -> None:
    provision.create(node, __import__("homes").request(name="plain", uuid=None, layout="simfs"))
    with pytest.raises(Unsupported, match="simfs"):
        snapshot.create(node, "plain")
    assert snapshot.rows(node, "plain") == []


def test_a_clone_has_no_snapshots(node: Node) -> None:
    write(node, "one")
    snapshot.create(node, "ct1")
    copy = clone.clone(node, "ct1", "ct2")
    assert snapshot.rows(node, "ct2") == []
    assert len(names_of(copy)) == 1
    assert read_of(node, "ct2") == "one"


def read_of(node: Node, ref: str) -> str:
    with mounted(node, ref) as root:
        return (root / "file").read_text()
