"""Storage pools: verbs, containers in them, moving between them, faults; lists of thousands."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import places
from homes import node_with_template, request
from pyvz.errors import (
    AlreadyExists,
    BadValue,
    Busy,
    FileMissing,
    InvalidState,
    NotFound,
    StorageError,
    Unsupported,
    UsageError,
)
from pyvz.operations import clone, provision, relocate, spacewatch, storagepool
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.storage import daemontest
from pyvz.store.pools import Pools

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and mounts need root")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return node_with_template(tmp_path)


def place(node: Node, name: str) -> Path:
    made = node.paths.root / "data" / name
    made.mkdir(parents=True)
    return made


@pytest.fixture
def overlay(node: Node) -> Path:
    made = place(node, "ov")
    storagepool.add(node, "ov", driver="overlay", path=str(made))
    return made


class TestVerbs:
    def test_add_and_look(self, node: Node, overlay: Path) -> None:
        state = storagepool.state(node, "ov")
        assert (state.problem, state.pool.path, state.volumes) == ("", overlay, ())
        assert 0 < state.floor <= 512 << 20
        assert [each.pool.name for each in storagepool.states(node)] == ["default", "ov"]

    def test_a_pool_of_qcow2_tries_its_daemon_first(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(daemontest, "_known", {})  # an earlier test's trial is none of ours
        made = place(node, "q")
        storagepool.add(node, "q", driver="qcow2", path=str(made))
        assert (made / ".storage-daemon").is_file()
        env = provision.create(node, request(pool="q", options=[("diskspace", "320M")]))
        assert storage.find(env.home).name == "qcow2"
        assert os.readlink(env.home / ".ve.layout") == "104"
        provision.delete(node, env.uuid)
        storagepool.delete(node, "q")
        assert not list(made.iterdir())

    def test_what_cannot_be_is_refused(self, node: Node, overlay: Path) -> None:
        root = node.paths.root
        for error, name, driver, path in (
            (Unsupported, "x", "nope", place(node, "a")),
            (FileMissing, "x", "simfs", root / "data/missing"),
            (AlreadyExists, "ov", "simfs", place(node, "b")),
            (AlreadyExists, "x", "simfs", overlay),
            (BadValue, "../x", "simfs", place(node, "c")),
            (BadValue, "x", "simfs", node.paths.ve_root),
            (BadValue, "x", "simfs", root),
            (Unsupported, "x", "btrfs", place(node, "d")),
        ):
            with pytest.raises(error):
                storagepool.add(node, name, driver=driver, path=str(path))
        with pytest.raises(UsageError, match="no option"):
            storagepool.add(
                node, "x", driver="simfs", path=str(root / "data/a"), options={"q": "1"}
            )
        assert [each.name for each in Pools(node.paths).all()] == ["default", "ov"]

    def test_change(self, node: Node, overlay: Path) -> None:
        storagepool.change(node, "ov", options={"floor": "1M"}, default=True)
        assert storagepool.state(node, "ov").floor == 1 << 20
        assert Pools(node.paths).default().name == "ov"
        with pytest.raises(InvalidState):
            storagepool.change(node, "ov", default=False)
        storagepool.change(node, "ov", options={"floor": ""})
        assert Pools(node.paths).get("ov").options == {}

    def test_delete(self, node: Node, overlay: Path) -> None:
        provision.create(node, request(pool="ov"))
        with pytest.raises(Busy, match="1 containers"):
            storagepool.delete(node, "ov")
        provision.delete(node, "ct1")
        storagepool.delete(node, "ov")
        assert list(overlay.iterdir()) == []
        with pytest.raises(NotFound):
            storagepool.delete(node, "ov")
        with pytest.raises(InvalidState):
            storagepool.delete(node, "default")

    def test_a_missing_directory_is_said(self, node: Node, overlay: Path) -> None:
        overlay.rmdir()
        assert "is not there" in storagepool.state(node, "ov").problem
        with pytest.raises(FileMissing):
            provision.create(node, request(pool="ov"))
        storagepool.delete(node, "ov")


class TestContainers:
    def test_made_in_the_pool(self, node: Node, overlay: Path) -> None:
        env = provision.create(node, request(pool="ov"))
        assert env.home.parent == overlay
        assert storage.find(env.home).name == "overlay"
        (volume,) = storagepool.state(node, "ov").volumes
        assert volume == (env.uuid, "ct1", "overlay", True)
        copy = clone.clone(node, "ct1", "ct2")
        assert copy.home.parent == overlay
        (template,) = [each for each in (overlay / ".templates").iterdir() if each.is_dir()]
        assert (template / "user").stat().st_nlink == 3

    def test_the_default_pool_and_both_given(self, node: Node, overlay: Path) -> None:
        storagepool.change(node, "ov", default=True)
        assert provision.create(node, request()).home.parent == overlay
        with pytest.raises(UsageError):
            provision.create(node, request(name="b", uuid=None, pool="ov", private="/vz/x/$VEID"))
        with pytest.raises(NotFound):
            provision.create(node, request(name="b", uuid=None, pool="nope"))

    def test_move_between_file_systems(self, node: Node, overlay: Path, tmp_path: Path) -> None:
        env = provision.create(node, request(pool="ov"))
        target = node.root(env)
        driver = storage.find(env.home)
        driver.mount(env.home, target)
        (target / "etc/mine").write_text("kept\n")
        (target / "bin/sh").unlink()
        driver.umount(env.home, target)
        other = node.paths.root / "data/other"
        with places.file_system("ext4", other, 64 << 20):
            storagepool.add(node, "other", driver="overlay", path=str(other))
            moved = relocate.move(node, "ct1", "other")
            assert moved.home.parent == other
            driver.mount(moved.home, target)
            assert (target / "etc/mine").read_text() == "kept\n"
            assert not (target / "bin/sh").exists()
            assert (target / "etc/hostname").read_text() == "tiny\n"
            driver.umount(moved.home, target)
            assert not env.home.exists()
            options = clone.CloneOptions(destination="ov")
            assert clone.clone(node, "ct1", "ct2", options=options).home.parent == overlay
            provision.delete(node, "ct2")
            provision.delete(node, "ct1")
            storagepool.delete(node, "other")

    def test_a_copy_that_is_not_equal_is_not_trusted(
        self, node: Node, overlay: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        env = provision.create(node, request(layout="simfs"))
        driver: Any = type(storage.load("simfs"))
        clone_of = driver.clone

        def damaged(self: Any, home: Path, new_home: Path, progress: Any) -> None:
            clone_of(self, home, new_home, progress)
            (new_home / "fs/etc/hostname").write_text("tinY\n")

        other = node.paths.root / "data/other"
        with places.file_system("ext4", other, 64 << 20):
            monkeypatch.setattr(driver, "clone", damaged)
            with pytest.raises(StorageError, match="not equal"):
                relocate.move(node, "ct1", str(other))
            assert [each.name for each in other.iterdir()] == ["lost+found"]
            assert (env.home / "fs/etc/hostname").read_text() == "tiny\n"

    def test_move_to_no_pool(self, node: Node) -> None:
        provision.create(node, request(layout="simfs"))
        with pytest.raises(NotFound, match="no storage pool 'nope'"):
            relocate.move(node, "ct1", "nope")


@pytest.mark.long
def test_a_thousand_volumes_are_listed_in_no_time(node: Node, overlay: Path) -> None:
    """Against reading the same links barely: a ratio, for machines differ; and 100 ms."""
    for number in range(1000):
        home = overlay / f"{number:08d}-0000-4000-8000-000000000000"
        home.mkdir()
        (home / ".ve.layout").symlink_to("102")
    pool = Pools(node.paths).get("ov")
    storagepool.volumes(node, pool)
    ours = bare = 1e9
    for _ in range(5):
        begun = time.perf_counter()
        assert len(storagepool.volumes(node, pool)) == 1000
        ours = min(ours, time.perf_counter() - begun)
        begun = time.perf_counter()
        for entry in os.scandir(overlay):
            if not entry.name.startswith("."):
                os.readlink(f"{entry.path}/.ve.layout")
        bare = min(bare, time.perf_counter() - begun)
    assert ours < 0.1
    assert ours < 6 * bare + 0.005


class Paused:
    """What the space watch asks of a runtime and of cgroups, for one running container."""

    def __init__(self) -> None:
        self.inits: dict[str, object] = {}
        self.stopped: set[str] = set()

    def running(self, _uuid: str | None = None) -> dict[str, object]:
        return self.inits

    def frozen(self, uuid: str) -> bool:
        return uuid in self.stopped

    def pause(self, uuid: str) -> None:
        self.stopped.add(uuid)

    def unpause(self, uuid: str) -> None:
        self.stopped.discard(uuid)


class TestSpaceWatch:
    @pytest.fixture
    def pool(self, node: Node) -> Iterator[Path]:
        made = node.paths.root / "data/small"
        made.parent.mkdir(exist_ok=True)
        with places.file_system("ext4", made, 256 << 20):
            storagepool.add(
                node, "small", driver="ploop", path=str(made), options={"floor": "100M"}
            )
            yield made

    def test_paused_and_resumed(self, node: Node, pool: Path, tmp_path: Path) -> None:
        runtime = Paused()
        alive: Any = cast("Any", runtime)
        object.__setattr__(node, "runtime", alive)
        object.__setattr__(node, "cgroups", alive)
        env = provision.create(node, request(pool="small", options=[("diskspace", "64M")]))
        watch = spacewatch.Watch(node)
        assert watch.look() is None
        runtime.inits[env.uuid] = object()
        assert watch.look() == spacewatch.FASTEST
        assert not runtime.stopped
        with (pool / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 120 << 20)
        watch.look()
        assert runtime.stopped == {env.uuid}
        spacewatch.Watch(node).look()  # another vzd
        assert runtime.stopped == {env.uuid}
        (pool / "ballast").unlink()
        spacewatch.Watch(node).look()
        assert not runtime.stopped
        names = [event.name for event in cast("Any", node.events)]
        assert names[-4:] == ["ve-pause", "pool-full", "ve-resume", "pool-ok"]
        runtime.stopped.add(env.uuid)  # by the administrator
        watch.look()
        assert runtime.stopped == {env.uuid}

    def test_a_pool_in_a_file_is_watched_down_to_the_disk(self, pool: Path) -> None:
        first, second = spacewatch.spaces(pool)[:2]
        assert first.path == pool
        assert second.path == pool.parent
