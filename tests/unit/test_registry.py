"""The registry: links, names, broken files, crashes between two steps."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from uuid import uuid4

import pytest

from pyvz.errors import (
    AlreadyExists,
    BadValue,
    ConfigError,
    EnvironmentNotFound,
    NotFound,
    UsageError,
)
from pyvz.model.conffile import ConfFile
from pyvz.model.environment import Environment, Kind
from pyvz.store import registry as module
from pyvz.store.leftover import sweep
from pyvz.store.paths import Paths
from pyvz.store.registry import Registry

TEXT = "# mine\nCPUUNITS=\"1000\"\nFOREIGN='x'\n"


@pytest.fixture
def registry(paths: Paths) -> Registry:
    return Registry(paths)


def make(paths: Paths, name: str, *, envid: str = "") -> Environment:
    uuid = str(uuid4())
    return Environment(uuid, envid or uuid, name, Kind.CT, paths.private / uuid)


def add(registry: Registry, paths: Paths, name: str, **more: str) -> Environment:
    return registry.add(make(paths, name, **more), ConfFile.parse(TEXT))


def test_layout_on_disk(paths: Paths, registry: Registry) -> None:
    env = add(registry, paths, "web 1")
    link = paths.conf / f"{env.uuid}.conf"
    assert os.readlink(link) == str(env.home / "ve.conf")
    assert os.readlink(paths.names / "web 1") == str(link)
    text = (env.home / "ve.conf").read_text()
    assert text.startswith(TEXT)
    assert f'UUID="{env.uuid}"' in text
    assert 'NAME="web 1"' in text
    assert not [p for p in paths.conf.iterdir() if p.name.startswith(".")]


def test_resolving(paths: Paths, registry: Registry) -> None:
    env = add(registry, paths, "web", envid="101")
    other = add(registry, paths, "db")
    for ref in (env.uuid, env.uuid.upper(), f"{{{env.uuid}}}", "101", "web"):
        assert registry.resolve(ref) == env
        assert Registry(paths).resolve(ref) == env
    assert registry.resolve("db") == other
    assert registry.environments() == [other, env]
    for ref in ("", "WEB", "we", "102", "../conf", "/etc/passwd", str(uuid4()), "a\0b"):
        with pytest.raises(EnvironmentNotFound):
            registry.resolve(ref)


def test_names_and_ids_are_unique(paths: Paths, registry: Registry) -> None:
    env = add(registry, paths, "web", envid="101")
    with pytest.raises(AlreadyExists, match="web"):
        add(registry, paths, "web")
    with pytest.raises(AlreadyExists):
        add(registry, paths, "101")
    with pytest.raises(AlreadyExists):
        add(registry, paths, env.uuid)
    with pytest.raises(AlreadyExists):
        add(registry, paths, "x", envid="101")
    with pytest.raises(AlreadyExists):
        registry.add(env._replace(home=paths.private / "elsewhere"), ConfFile.parse(TEXT))
    with pytest.raises(BadValue):
        add(registry, paths, "a/b")
    with pytest.raises(ConfigError, match="CPUUNITS"):
        registry.add(make(paths, "bad"), ConfFile.parse("CPUUNITS=1\n"))
    assert registry.environments() == [env]
    assert os.listdir(paths.names) == ["web"]
    assert registry.add(env, ConfFile.parse(TEXT)) == env  # again is fine


def test_rename(paths: Paths, registry: Registry) -> None:
    env, other = add(registry, paths, "old"), add(registry, paths, "other")
    renamed = registry.rename(env, "new")
    assert renamed == env._replace(name="new")
    assert sorted(os.listdir(paths.names)) == ["new", "other"]
    assert registry.resolve("new") == renamed
    assert registry.conf_file(renamed).get("FOREIGN") == "x"
    with pytest.raises(EnvironmentNotFound):
        registry.resolve("old")
    with pytest.raises(AlreadyExists):
        registry.rename(renamed, "other")
    with pytest.raises(AlreadyExists):
        registry.rename(renamed, other.uuid.upper())
    assert registry.rename(renamed, "new") == renamed
    assert registry.rename(renamed, renamed.uuid).name == env.uuid  # its own id is fine
    with pytest.raises(UsageError, match="renaming"):
        registry.save(other, ConfFile.parse('NAME="x"\n'))


def test_save(paths: Paths, registry: Registry) -> None:
    env = add(registry, paths, "web")
    conf = registry.conf_file(env)
    conf.set("CPUUNITS", "2000")
    registry.save(env, conf)
    assert registry.config_path(env).is_symlink()
    assert registry.config(env).cpu.units == 2000
    assert Registry(paths).config(env).cpu.units == 2000
    conf.set("CPUUNITS", "1")
    with pytest.raises(ConfigError):
        registry.save(env, conf)
    assert registry.config(env).cpu.units == 2000


def test_defaults_of_vz_conf(paths: Paths, registry: Registry) -> None:
    env = add(registry, paths, "web")
    assert registry.config(env).boot.onboot == "no"
    paths.vz_conf.write_text('ONBOOT="yes"\n')
    assert registry.config(env).boot.onboot == "yes"
    assert "ONBOOT" not in registry.config(env).text()
    paths.vz_conf.write_text('ONBOOT="perhaps"\n')
    with pytest.raises(ConfigError, match=r"vz\.conf.*ONBOOT"):
        registry.config(env)
    assert registry.snapshot()[0][2] == ""  # a typing error in vz.conf makes nobody invalid
    assert registry.environments() == [env]


def test_remove(paths: Paths, registry: Registry) -> None:
    env, other = add(registry, paths, "web"), add(registry, paths, "db")
    registry.remove(env, keep_files=True)
    registry.remove(env, keep_files=True)
    assert registry.environments() == [other]
    assert (env.home / "ve.conf").exists()
    assert os.listdir(paths.names) == ["db"]
    with pytest.raises(EnvironmentNotFound):
        registry.config(env)
    assert registry.add(env, ConfFile.parse((env.home / "ve.conf").read_text())) == env


def test_files_of_openvz_6(paths: Paths, registry: Registry) -> None:
    paths.conf.mkdir(parents=True)
    paths.names.mkdir()
    (paths.conf / "101.conf").write_text('VE_PRIVATE="/vz/private/$VEID"\nCPUUNITS="500"\n')
    (paths.conf / "0.conf").write_text("CPUUNITS=1000\n")
    (paths.conf / "ve-basic.conf-sample").write_text("CPUUNITS=1000\n")
    (paths.names / "mail").symlink_to(paths.conf / "101.conf")
    (env,) = registry.environments()
    assert (env.envid, env.name, env.home) == ("101", "mail", paths.private / "101")
    assert Registry(paths).resolve("101").uuid == env.uuid
    for ref in ("101", "mail", env.uuid):
        assert registry.resolve(ref) == env
    assert registry.config(env).cpu.units == 500
    renamed = registry.rename(env, "post")
    assert registry.resolve("post") == renamed
    assert os.listdir(paths.names) == ["post"]
    registry.remove(renamed, keep_files=False)
    assert registry.environments() == []
    assert (paths.conf / "101.conf.destroyed").exists()


def test_broken_files_hide_nothing(
    paths: Paths, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    good = add(registry, paths, "good")
    lost, junk, odd = (add(registry, paths, name) for name in ("lost", "junk", "odd"))
    (lost.home / "ve.conf").unlink()
    (junk.home / "ve.conf").write_bytes(b"\x7fELF\x00\xff\n" * 9)
    (odd.home / "ve.conf").write_text('NAME="odd"\nCPUUNITS="many"\nCPUS="2"\n')
    (paths.conf / f"{uuid4()}.conf").mkdir()
    (paths.conf / f"{uuid4()}.conf").symlink_to("loop")
    fresh = Registry(paths)
    found = {env.uuid: env for env in fresh.environments()}
    assert len(found) == 6
    assert found[good.uuid] == good
    assert fresh.problem(good) == ""
    assert "leads nowhere" in fresh.problem(lost)
    assert found[lost.uuid].home == lost.home
    assert found[lost.uuid].name == "lost"  # its name link still tells
    assert "not the configuration" in fresh.problem(junk)
    assert fresh.problem(odd) == ""
    assert fresh.peek(odd).cpu.cpus == 2
    with pytest.raises(ConfigError, match="CPUUNITS"):
        fresh.config(odd)
    for env in (lost, junk):
        with pytest.raises(ConfigError):
            fresh.config(env)
    assert "leads nowhere" in caplog.text
    assert [row[0].uuid for row in fresh.snapshot()] == [x.uuid for x in fresh.environments()]
    fresh.remove(found[lost.uuid], keep_files=False)
    assert lost.uuid not in {env.uuid for env in fresh.environments()}


def test_stale_name_links_are_not_believed(paths: Paths, registry: Registry) -> None:
    env = add(registry, paths, "web")
    (paths.names / "ghost").symlink_to(paths.conf / f"{uuid4()}.conf")
    (paths.names / "alias").symlink_to(paths.conf / f"{env.uuid}.conf")
    for name in ("ghost", "alias"):
        with pytest.raises(EnvironmentNotFound):
            registry.resolve(name)
    assert add(registry, paths, "ghost").name == "ghost"
    assert add(registry, paths, "alias").name == "alias"
    assert registry.resolve("web") == env


class Crash(BaseException):
    """The process died here."""


def act(verb: str, node: Paths, env: Environment) -> None:
    registry = Registry(node)
    if verb == "add":
        registry.add(env, ConfFile.parse(TEXT))
    elif verb == "rename":
        registry.rename(registry.resolve(env.uuid), "new")
    else:
        registry.remove(env, keep_files=True)


def die_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let the change of the disk number STEP raise Crash instead of happening."""
    left = [step]

    def counted(call):
        def change(*args: object, **options: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise Crash
            return call(*args, **options)

        return change

    patch.setattr(module, "_write", counted(module._write))
    patch.setattr(module, "_symlink", counted(module._symlink))
    patch.setattr(Path, "unlink", counted(Path.unlink))


@pytest.mark.parametrize("step", range(1, 8))
@pytest.mark.parametrize("verb", ["add", "rename", "remove"])
def test_a_crash_at_any_step_can_be_done_again(
    paths: Paths, verb: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bystander, env = add(Registry(paths), paths, "bystander"), make(paths, "web")
    if verb != "add":
        Registry(paths).add(env, ConfFile.parse(TEXT))
    with monkeypatch.context() as patch, contextlib.suppress(Crash):
        die_at(patch, step)
        act(verb, paths, env)
        assert step > 2  # each verb has more than two steps
    between = Registry(paths).environments()  # whole at every moment
    assert bystander in between
    assert not any(Registry(paths).problem(x) for x in between)
    act(verb, paths, env)
    names = {"add": {"web"}, "rename": {"new"}, "remove": set()}[verb] | {"bystander"}
    assert {x.name for x in Registry(paths).environments()} == names
    assert set(os.listdir(paths.names)) == names


def test_samples(paths: Paths, registry: Registry) -> None:
    assert registry.samples() == []
    paths.conf.mkdir(parents=True)
    (paths.conf / "ve-basic.conf-sample").write_text("CPUUNITS=1000\n")
    assert registry.samples() == ["basic"]
    assert registry.sample("basic").get("CPUUNITS") == "1000"
    for name in ("none", "../x", ""):
        with pytest.raises(NotFound):
            registry.sample(name)


def test_two_hundred_are_listed_quickly(paths: Paths, registry: Registry) -> None:
    """Warm, 200 take 2 to 4 ms on the slow machine; the bound leaves room for its neighbours."""
    for n in range(200):
        uuid = str(uuid4())
        home = paths.private / uuid
        home.mkdir(parents=True)
        (home / "ve.conf").write_text(f'NAME="ct{n}"\nUUID="{uuid}"\n' + TEXT)
        paths.conf.mkdir(parents=True, exist_ok=True)
        (paths.conf / f"{uuid}.conf").symlink_to(home / "ve.conf")
    assert len(registry.snapshot()) == 200
    times = []
    for _ in range(5):
        begin = time.thread_time()
        registry.snapshot()
        times.append(time.thread_time() - begin)
    assert min(times) < 0.02


def test_temporaries_of_the_dead_are_swept(paths: Paths, registry: Registry) -> None:
    env = add(registry, paths, "web")
    old, new = paths.names / ".12.34.tmp", paths.conf / ".x.conf.0123456789ab"
    old.symlink_to("nowhere")
    new.write_text("half")
    os.utime(old, (1, 1), follow_symlinks=False)
    assert sweep(paths) == [old]
    os.utime(new, (1, 1))
    assert sweep(paths) == [new]
    assert sweep(paths) == []
    assert registry.environments() == [env]
    assert sorted(os.listdir(paths.names)) == ["web"]
