"""Move, register and unregister: results and refusals."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import faults
from homes import (
    UUID,
    cast_events,
    conf_of,
    node_with_template,
    request,
    world,
)
from pyvz.errors import (
    AlreadyExists,
    BadValue,
    ConfigError,
    EnvironmentNotFound,
    InvalidState,
    PrivateExists,
    PrivateMissing,
    StorageError,
)
from pyvz.operations import home, provision, register, relocate
from pyvz.operations.node import Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return node_with_template(tmp_path)


class TestMove:
    def test_by_rename(self, node: Node) -> None:
        env = provision.create(node, request())
        inode = (env.home / "fs").stat().st_ino
        moved = relocate.move(node, "ct1", "/data")
        assert moved.home == node.paths.root / "data" / UUID
        assert (moved.home / "fs").stat().st_ino == inode
        assert not env.home.exists()
        assert node.registry.resolve("ct1").home == moved.home
        assert conf_of(moved).get("VE_PRIVATE") == "/data/$VEID"
        with pytest.raises(PrivateExists):
            relocate.move(node, "ct1", "/data")
        assert relocate.move(node, "ct1", "/vz/private").home == env.home

    def test_not_into_itself(self, node: Node) -> None:
        env = provision.create(node, request())
        with pytest.raises(BadValue):
            relocate.move(node, "ct1", f"/vz/private/{UUID}/fs")
        assert (env.home / "fs").exists()

    def test_not_over_something(self, node: Node) -> None:
        provision.create(node, request())
        (node.paths.root / "data" / UUID).mkdir(parents=True)
        with pytest.raises(PrivateExists):
            relocate.move(node, "ct1", "/data")


class TestRegister:
    def test_there_and_back(self, node: Node) -> None:
        env = provision.create(node, request(ctid="44"))
        register.unregister(node, "ct1")
        assert not (env.home / ".owner").exists()
        with pytest.raises(EnvironmentNotFound):
            node.registry.resolve(UUID)
        back = register.register(node, os.fspath(env.home), preserve_uuid=True)
        assert back == env
        assert node.registry.resolve("44").uuid == UUID
        assert (env.home / ".owner").read_text().strip() == home.owner_id(node)
        assert cast_events(node).names[-2:] == ["ve-unregister", "ve-register"]

    def test_gets_a_new_uuid_unless_told(self, node: Node) -> None:
        env = provision.create(node, request())
        register.unregister(node, "ct1")
        new = register.register(node, os.fspath(env.home))
        assert new.uuid != UUID
        assert new.home == env.home
        assert conf_of(new).get("UUID") == new.uuid
        assert conf_of(new).get("VE_PRIVATE") == f"/vz/private/{UUID}"
        assert node.registry.resolve(new.uuid).home == env.home

    def test_a_taken_name_gets_a_number(self, node: Node) -> None:
        env = provision.create(node, request())
        register.unregister(node, "ct1")
        provision.create(node, request(uuid=None))
        with pytest.raises(AlreadyExists):
            register.register(node, os.fspath(env.home), name="ct1")
        assert register.register(node, os.fspath(env.home), preserve_uuid=True).name == "ct1-1"

    def test_twice(self, node: Node) -> None:
        env = provision.create(node, request())
        before = world(node)
        with pytest.raises(AlreadyExists):
            register.register(node, os.fspath(env.home))
        assert faults.difference(world(node), before) == []

    @pytest.mark.parametrize("path", ["/nowhere", "", "vz/private"])
    def test_no_home(self, node: Node, path: str) -> None:
        with pytest.raises(PrivateMissing):
            register.register(node, os.fspath(node.paths.root / path))

    def test_what_a_guest_made_is_refused(self, node: Node) -> None:
        env = provision.create(node, request())
        fake = env.home / "fs/srv/home"
        (fake / "fs").mkdir(parents=True)
        (fake / "ve.conf").write_text('UUID="x"\n')
        with pytest.raises(StorageError):
            register.register(node, os.fspath(fake))
        link = node.paths.root / "innocent"
        link.symlink_to(fake)
        with pytest.raises(StorageError):
            register.register(node, os.fspath(link))

    def test_a_linked_conf_is_refused(self, node: Node) -> None:
        env = provision.create(node, request())
        register.unregister(node, "ct1")
        (env.home / "ve.conf").rename(env.home / "fs/conf")
        (env.home / "ve.conf").symlink_to("fs/conf")
        with pytest.raises(PrivateMissing):
            register.register(node, os.fspath(env.home))

    def test_garbage_in_the_conf(self, node: Node) -> None:
        env = provision.create(node, request())
        register.unregister(node, "ct1")
        (env.home / "ve.conf").write_text('CPUUNITS="lots"\n')
        before = world(node)
        with pytest.raises(ConfigError, match="CPUUNITS"):
            register.register(node, os.fspath(env.home))
        assert faults.difference(world(node), before) == []

    def test_another_nodes_on_a_shared_disk(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        env = provision.create(node, request())
        register.unregister(node, "ct1")
        (env.home / ".owner").write_text("somebody-else\n")
        monkeypatch.setattr(register, "_SHARED", ("",))
        before = world(node)
        with pytest.raises(InvalidState, match="somebody-else"):
            register.register(node, os.fspath(env.home))
        assert faults.difference(world(node), before) == []
        register.register(node, os.fspath(env.home), force=True)


# -- the fault sweep: (what is there before, the verb)

Verb = Callable[[Node], object]
