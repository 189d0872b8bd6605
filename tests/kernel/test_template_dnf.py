"""dnf templates for real: a small distribution made with rpmbuild and createrepo_c."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from pyvz.errors import TemplateError
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.task import NoProgress
from pyvz.store.paths import Paths
from pyvz.template import base, build, cache, settings
from pyvz.template.metadata import OsTemplate, find_os
from toydistro import HELLO, make_index, make_rpm, missing_programs, toy_node

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), missing_programs]


@pytest.fixture(scope="module")
def world() -> Iterator[Paths]:
    with toy_node() as paths:
        yield paths


@pytest.fixture(scope="module")
def template(world: Paths) -> OsTemplate:
    return find_os(cache.area(world), "toy-1")


@pytest.fixture(scope="module")
def built(world: Paths, template: OsTemplate) -> cache.CacheFile:
    return build.build(world, template, NoProgress(), replace=False)


class Chroot:
    """A tree whose programs run in namespaces of their own; stands for a running container."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = GuestRoot.open(path)

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        timeout: float,
        on_line: Callable[[str], None] | None = None,
    ) -> base.Answer:
        namespaces = ["unshare", "--mount", "--propagation=slave", "--pid", "--net", "--fork"]
        done = subprocess.run(
            [*namespaces, "/usr/sbin/chroot", self.path, *argv],
            check=False,
            capture_output=True,
            text=True,
            env=dict(env),
            timeout=timeout,
        )
        return base.Answer(done.returncode, done.stdout + done.stderr)


@pytest.fixture
def guest(built: cache.CacheFile, tmp_path: Path) -> Iterator[Chroot]:
    tree = tmp_path / "tree"
    tree.mkdir()
    subprocess.run(["tar", "-C", tree, "-xf", built.path], check=True)
    chroot = Chroot(tree)
    yield chroot
    chroot.root.close()


def recipe_of(world: Paths, template: OsTemplate) -> base.Recipe:
    return settings.recipe(template, settings.load(world))._replace(expire=0.0)


def test_the_cache_is_a_tree_with_its_database_where_its_own_rpm_looks(
    built: cache.CacheFile, guest: Chroot
) -> None:
    assert built.path.name == "toy-1-x86_64.plain.tar.zst"
    assert (guest.path / "sbin/init").is_symlink()
    assert (guest.path / "usr/lib/sysimage/rpm/rpmdb.sqlite").is_file()
    assert not (guest.path / "root/.rpmdb").exists()
    assert "root:*:" in (guest.path / "etc/shadow").read_text()
    answer = guest.run(["/usr/bin/rpm", "-qa"], env={}, timeout=30)
    assert "toybase-1-1" in answer.output


def test_installed_packages_are_read_from_outside(guest: Chroot) -> None:
    names = {package.name for package in base.load("dnf").installed(guest.root)}
    assert {"toybase", "toyrpm"} <= names


def test_install_update_and_remove_inside(
    world: Paths, template: OsTemplate, guest: Chroot, tmp_path: Path
) -> None:
    manager = base.load(template.package_manager)
    recipe = recipe_of(world, template)
    new = manager.install(guest, recipe, ["hello"], NoProgress())
    assert [package.name for package in new] == ["greeting", "hello"]
    assert (guest.path / "tmp/installed").read_text() == "1.0\n"  # %post ran inside
    assert not list((guest.path / "var/cache/vzpkg").iterdir())
    assert manager.updates(guest.root, recipe, NoProgress()) == []

    repository = world.root / "repository"
    make_rpm(tmp_path / "build", HELLO.replace("@VERSION@", "2.0"), repository)
    make_index(repository)
    updates = manager.updates(guest.root, recipe, NoProgress())
    assert [(u.name, u.installed, u.available) for u in updates] == [("hello", "1.0-1", "2.0-1")]
    newer = manager.update(guest, recipe, [], NoProgress())
    assert [(package.name, package.version) for package in newer] == [("hello", "2.0-1")]
    assert (guest.path / "usr/bin/hello").read_text() == "echo hello 2.0\n"

    needed = manager.would_remove(guest.root, recipe, ["greeting"], NoProgress())
    assert sorted(needed) == ["greeting", "hello"]
    gone = manager.remove(guest, ["hello"], NoProgress())
    assert [package.name for package in gone] == ["hello"]
    assert not (guest.path / "usr/bin/hello").exists()


def test_a_local_file_brings_what_it_needs(
    world: Paths, template: OsTemplate, guest: Chroot
) -> None:
    manager = base.load(template.package_manager)
    file = next((world.root / "repository/noarch").glob("hello-1.0*.rpm"))
    new = manager.install_files(guest, recipe_of(world, template), [file], NoProgress())
    assert [package.name for package in new] == ["greeting", "hello"]


def test_an_unknown_package_changes_nothing(
    world: Paths, template: OsTemplate, guest: Chroot
) -> None:
    manager = base.load(template.package_manager)
    with pytest.raises(TemplateError, match="no package nosuch"):
        manager.install(guest, recipe_of(world, template), ["nosuch"], NoProgress())
    assert manager.clean(recipe_of(world, template)) is None


def test_a_build_that_fails_leaves_nothing(world: Paths) -> None:
    home = world.root / "vz/template/toy/2/x86_64/config/os/default"
    shutil.copytree(world.root / "vz/template/toy/1/x86_64/config/os/default", home)
    (home / "packages").write_text("toybase\nnosuch\n")
    with pytest.raises(TemplateError) as caught:
        build.build(world, find_os(cache.area(world), "toy-2"), NoProgress(), replace=False)
    assert "nosuch" in caught.value.details
    assert not [p.name for p in cache.directory(world).iterdir() if "toy-2" in p.name]
    shutil.rmtree(world.root / "vz/template/toy/2")
