"""Create and delete: results and refusals."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import faults
from homes import (
    UUID,
    Called,
    cast_events,
    conf_of,
    node_with_template,
    request,
    world,
)
from pyvz.errors import (
    AlreadyExists,
    AlreadyRunning,
    BadValue,
    Cancelled,
    ConfigError,
    EnvironmentNotFound,
    Locked,
    NotFound,
    PrivateExists,
    StorageError,
    TemplateNotFound,
    Unsupported,
    UsageError,
    VZError,
)
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.model.task import NoProgress
from pyvz.operations import home, provision
from pyvz.operations.node import Node
from pyvz.store.journal import Journal
from pyvz.store.lease import Lease
from worlds import Nothing


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return node_with_template(tmp_path)


class TestCreate:
    def test_makes_a_whole_home(self, node: Node) -> None:
        env = provision.create(node, request(options=[("cpuunits", "2000")]))
        assert env == Environment(UUID, UUID, "ct1", Kind.CT, node.paths.private / UUID)
        assert {path.name for path in env.home.iterdir()} == {
            *(".owner", ".ve.layout", "ve.conf", "fs", "scripts", "dump", "templates"),
        }
        assert (env.home / "fs/etc/hostname").read_text() == "tiny\n"
        assert (env.home / "fs/bin/sh").stat().st_mode & 0o7777 == 0o4755
        assert env.home.stat().st_mode & 0o777 == 0o700
        conf = conf_of(env)
        assert (
            conf.values()
            | {
                "CPUUNITS": "2000",
                "UUID": UUID,
                "VEID": UUID,
                "NAME": "ct1",
                "VE_PRIVATE": "/vz/private/$VEID",
                "VE_ROOT": "/vz/root/$VEID",
                "ORIGIN_SAMPLE": "basic",
                "VERSION": "2",
                "PLATFORM": "linux",
                "X_OURS": "kept",
                "ONBOOT": "yes",
            }
            == conf.values()
        )
        assert conf.get("HOSTNAME") is None
        assert conf.get("OSTEMPLATE") == ".tiny-1-x86_64"
        assert "# a sample" in conf.render()
        assert node.registry.resolve("ct1") == env
        assert node.registry.resolve(UUID) == env
        assert node.status(env) == Status.STOPPED
        assert cast_events(node).names == ["ve-create"]
        assert Journal.all(node.paths) == []

    def test_legacy_number(self, node: Node) -> None:
        env = provision.create(node, request(name=None, uuid=None, ctid="0101"))
        assert (env.envid, env.name) == ("101", "101")
        assert node.registry.resolve("101").uuid == env.uuid
        assert conf_of(env).get("VEID") == "101"
        # A script that sources ve.conf has VEID=101 and must still find the place.
        assert conf_of(env).get("VE_ROOT") == f"/vz/root/{env.uuid}"

    def test_other_place(self, node: Node) -> None:
        env = provision.create(node, request(private="/data/cts/$VEID"))
        assert env.home == node.paths.root / "data/cts" / UUID
        assert conf_of(env).get("VE_PRIVATE") == "/data/cts/$VEID"
        assert node.registry.resolve("ct1").home == env.home

    def test_without_a_disk(self, node: Node) -> None:
        env = provision.create(node, request(no_disk=True, ostemplate=None))
        assert conf_of(env).get("ROOT_DISK") == "no"
        assert not (env.home / "fs").exists()

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"name": "-x"}, BadValue),
            ({"name": "a/b"}, BadValue),
            ({"name": "1f2e3d4c-0000-4000-8000-00000000000b"}, BadValue),
            ({"uuid": "nonsense"}, BadValue),
            ({"ctid": "0"}, BadValue),
            ({"ctid": "99999999999"}, BadValue),
            ({"config": "nowhere"}, NotFound),
            ({"config": "../../etc/passwd"}, NotFound),
            ({"ostemplate": "nothing-9"}, TemplateNotFound),
            ({"layout": "nonsense"}, Unsupported),
            ({"layout": "../base"}, Unsupported),
            ({"options": [("diskspace", "1048576")]}, Unsupported),
            ({"options": [("cpuunits", "many")]}, BadValue),
            ({"options": [("nonsense", "1")]}, UsageError),
            ({"private": "relative/place"}, BadValue),
            ({"private": "/"}, BadValue),
            ({"private": "/vz/../../../x/$VEID"}, None),
            ({"private": "/vz/root/x"}, BadValue),
            ({"kind": Kind.VM}, TemplateNotFound),
        ],
    )
    def test_refusal_changes_nothing(
        self, node: Node, fields: dict[str, object], error: type[VZError] | None
    ) -> None:
        before = world(node)
        if error is None:  # ".." is taken away, never followed out of the node
            env = provision.create(node, request(**fields))
            assert env.home == node.paths.root / "x" / UUID
            return
        with pytest.raises(error):
            provision.create(node, request(**fields))
        assert faults.difference(world(node), before) == []
        assert cast_events(node).names == []

    def test_a_garbled_sample_is_refused(self, node: Node) -> None:
        (node.paths.conf / "ve-bad.conf-sample").write_text('CPUUNITS="lots"\n')
        before = world(node)
        with pytest.raises(ConfigError, match="CPUUNITS"):
            provision.create(node, request(config="bad"))
        assert faults.difference(world(node), before) == []

    @pytest.mark.parametrize(
        "again",
        [
            {"uuid": None},
            {"name": "other"},
            {"name": UUID, "uuid": None},
            {"name": "other", "uuid": None, "ctid": "7"},
            {"name": "7", "uuid": None},
        ],
    )
    def test_what_is_taken_is_refused(self, node: Node, again: dict[str, object]) -> None:
        provision.create(node, request(ctid="7"))
        before = world(node)
        with pytest.raises((AlreadyExists, BadValue)):
            provision.create(node, request(**again))
        assert faults.difference(world(node), before) == []

    def test_not_over_another_directory(self, node: Node) -> None:
        (node.paths.private / UUID).mkdir()
        with pytest.raises(PrivateExists):
            provision.create(node, request())
        assert list((node.paths.private / UUID).iterdir()) == []

    def test_not_inside_the_files_of_another(self, node: Node) -> None:
        provision.create(node, request())
        inside = f"/vz/private/{UUID}/fs/srv/$VEID"
        with pytest.raises(BadValue):
            provision.create(node, request(name="ct2", uuid=None, private=inside))

    def test_not_behind_a_guests_link(self, node: Node) -> None:
        env = provision.create(node, request())
        (node.paths.root / "away").symlink_to(env.home / "fs")
        with pytest.raises(BadValue):
            provision.create(node, request(name="ct2", uuid=None, private="/away/$VEID"))

    def test_of_two_at_once_one_wins_at_once(self, node: Node) -> None:
        entered, go_on = threading.Event(), threading.Event()

        class Waiting(NoProgress):
            def stage(self, text: str) -> None:
                entered.set()
                assert go_on.wait(200)

        winner = threading.Thread(target=provision.create, args=(node, request(), Waiting()))
        winner.start()
        try:
            assert entered.wait(200)
            for fields in ({"uuid": None}, {"name": "ct2"}):
                with pytest.raises(AlreadyExists):
                    provision.create(node, request(**fields))
        finally:
            go_on.set()
            winner.join(200)
        assert [env.name for env in node.registry.environments()] == ["ct1"]

    @pytest.mark.parametrize("at", range(1, 8))
    def test_called_off_leaves_nothing(self, node: Node, at: int) -> None:
        before = world(node)
        try:
            provision.create(node, request(), Called(at))
        except Cancelled:
            assert faults.difference(world(node), before) == []
            assert Journal.all(node.paths) == []
        provision.delete(node, "ct1") if home.taken(node, "ct1") else None


class TestDelete:
    def test_leaves_no_trace(self, node: Node) -> None:
        node.id_ranges.allocate(UUID)
        node.id_ranges.release(UUID)
        before = world(node)
        env = provision.create(node, request())
        node.id_ranges.allocate(env.uuid)
        (node.paths.ve_root / UUID).mkdir()
        provision.delete(node, "ct1")
        assert faults.difference(world(node), before) == []
        assert node.id_ranges.get(UUID) is None
        assert cast_events(node).names == ["ve-create", "ve-delete"]
        with pytest.raises(EnvironmentNotFound):
            provision.delete(node, "ct1")

    def test_a_running_one_is_refused(self, node: Node) -> None:
        provision.create(node, request())
        before = world(node)
        runtime = node.runtime
        assert isinstance(runtime, Nothing)
        runtime.inits[UUID] = object()
        with pytest.raises(AlreadyRunning):
            provision.delete(node, "ct1")
        assert faults.difference(world(node), before) == []

    def test_a_busy_one_is_refused(self, node: Node) -> None:
        env = provision.create(node, request())
        taken = threading.Event()
        done = threading.Event()

        def hold() -> None:
            with Lease.take(node.paths, env.uuid, "backup"):
                taken.set()
                done.wait(200)

        holder = threading.Thread(target=hold)
        holder.start()
        assert taken.wait(200)
        try:
            with pytest.raises(Locked, match="backup"):
                provision.delete(node, "ct1")
        finally:
            done.set()
            holder.join(200)
        assert env.home.exists()

    def test_a_mistyped_private_area_is_not_removed(self, node: Node) -> None:
        env = provision.create(node, request())
        precious = node.paths.root / "precious"
        precious.mkdir()
        (precious / "data").write_text("of years")
        (precious / "ve.conf").write_text(conf_of(env).render())
        link = node.paths.conf / f"{UUID}.conf"
        link.unlink()
        link.symlink_to(precious / "ve.conf")
        wrong = node.registry.resolve("ct1")
        if wrong.home == precious:
            with pytest.raises(StorageError):
                provision.delete(node, "ct1")
        assert (precious / "data").exists()

    def test_one_whose_files_are_gone_is_forgotten(self, node: Node) -> None:
        before = world(node)
        env = provision.create(node, request())
        env.home.rename(node.paths.root / "elsewhere")
        provision.delete(node, UUID)
        (node.paths.root / "elsewhere").rename(env.home)
        home.dismantle(env.home, NoProgress())
        assert faults.difference(world(node), before) == []
