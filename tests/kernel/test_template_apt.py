"""apt templates for real: a minimal Debian from the mirror that this node itself uses."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from images import debian_mirror
from pyvz.errors import CommandFailed, TemplateError
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.task import NoProgress
from pyvz.store.paths import Paths
from pyvz.template import base, build, cache, settings
from pyvz.template.cachedata import package_data
from pyvz.template.metadata import OsTemplate, find_os

SHIPPED = Path(__file__).resolve().parents[2] / "templates"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="needs mmdebstrap"),
    pytest.mark.skipif(not debian_mirror(), reason="needs a Debian mirror"),
]


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


@pytest.fixture(scope="module")
def world() -> Iterator[Paths]:
    """A node with the shipped Debian 12, cut down to what every Debian has, and `hostname`."""
    root = Path(tempfile.mkdtemp(prefix="apt-", dir="/tmp"))
    root.chmod(0o755)
    area = root / "vz/template"
    shutil.copytree(SHIPPED / "debian/12", area / "debian/12")
    (area / "debian/12/x86_64/config/os/default/packages").write_text("hostname\n")
    yield Paths(root)
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def template(world: Paths) -> OsTemplate:
    return find_os(cache.area(world), "debian-12")


@pytest.fixture(scope="module")
def built(world: Paths, template: OsTemplate) -> cache.CacheFile:
    return build.build(world, template, NoProgress(), replace=False)


@pytest.fixture(scope="module")
def guest(built: cache.CacheFile) -> Iterator[Chroot]:
    tree = Path(tempfile.mkdtemp(prefix="apt-tree-", dir="/tmp"))
    subprocess.run(["tar", "-C", tree, "-xf", built.path], check=True)
    chroot = Chroot(tree)
    yield chroot
    chroot.root.close()
    shutil.rmtree(tree)


def recipe_of(world: Paths, template: OsTemplate) -> base.Recipe:
    return settings.recipe(template, settings.load(world))


def test_the_cache_holds_nothing_of_the_node(guest: Chroot) -> None:
    sources = (guest.path / "etc/apt/sources.list").read_text()
    assert "bookworm main" in sources
    assert "signed-by" not in sources
    assert not list((guest.path / "etc").rglob("99mmdebstrap"))
    assert (guest.path / "etc/resolv.conf").read_text() == ""
    assert not (guest.path / "etc/hostname").exists()
    assert "root:*:" in (guest.path / "etc/shadow").read_text()


def test_install_and_remove_inside_without_a_network(
    world: Paths, template: OsTemplate, guest: Chroot
) -> None:
    manager = base.load(template.package_manager)
    recipe = recipe_of(world, template)
    new = manager.install(guest, recipe, ["jq"], NoProgress())
    names = [package.name for package in new]
    assert "jq" in names
    assert "libjq1" in names
    assert not list((guest.path / "var/cache/vzpkg").iterdir())
    answer = guest.run(["/usr/bin/jq", "-n", "1+1"], env={}, timeout=30)
    assert answer.output.strip() == "2"
    automatic = guest.run(["/usr/bin/apt-mark", "showauto"], env={}, timeout=30).output.split()
    assert "libjq1" in automatic
    assert "jq" not in automatic
    needed = manager.would_remove(guest.root, recipe, ["libjq1"], NoProgress())
    assert sorted(needed) == ["jq", "libjq1"]
    gone = manager.remove(guest, ["jq"], NoProgress())
    assert {"jq", "libjq1"} <= {package.name for package in gone}


def test_an_older_package_is_seen_and_brought_up_to_date(
    world: Paths, template: OsTemplate, guest: Chroot
) -> None:
    """The status is made to say that an older hostname is installed."""
    manager = base.load(template.package_manager)
    recipe = recipe_of(world, template)
    assert manager.updates(guest.root, recipe, NoProgress()) == []
    status = guest.path / "var/lib/dpkg/status"
    stanzas = status.read_text().split("\n\n")
    for number, stanza in enumerate(stanzas):
        if stanza.startswith("Package: hostname\n"):
            lines = ["Version: 0.1" if x.startswith("Version:") else x for x in stanza.split("\n")]
            stanzas[number] = "\n".join(lines)
    status.write_text("\n\n".join(stanzas))
    found = manager.updates(guest.root, recipe, NoProgress())
    assert [(update.name, update.installed) for update in found] == [("hostname", "0.1")]
    newer = manager.update(guest, recipe, [], NoProgress())
    assert [package.name for package in newer] == ["hostname"]
    assert manager.updates(guest.root, recipe, NoProgress()) == []


def test_a_local_file_brings_what_it_needs(
    world: Paths, template: OsTemplate, guest: Chroot, tmp_path: Path
) -> None:
    tree = tmp_path / "toy"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: m <m@localhost>\n"
        "Depends: tree\nDescription: toy\n"
    )
    (tree / "toy").write_text("toy\n")
    subprocess.run(["dpkg-deb", "-b", tree, tmp_path / "toy.deb"], check=True, capture_output=True)
    manager = base.load(template.package_manager)
    recipe = recipe_of(world, template)
    new = manager.install_files(guest, recipe, [tmp_path / "toy.deb"], NoProgress())
    assert [package.name for package in new] == ["toy", "tree"]
    assert (guest.path / "toy").is_file()


def test_unknown_packages_change_nothing(world: Paths, template: OsTemplate, guest: Chroot) -> None:
    manager = base.load(template.package_manager)
    with pytest.raises(TemplateError, match="no package nosuch"):
        manager.install(guest, recipe_of(world, template), ["tree", "nosuch"], NoProgress())


def test_a_package_that_fails_inside_is_told(
    world: Paths, template: OsTemplate, guest: Chroot, tmp_path: Path
) -> None:
    tree = tmp_path / "bad"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: bad\nVersion: 1\nArchitecture: all\nMaintainer: m <m@localhost>\n"
        "Description: bad\n"
    )
    (tree / "DEBIAN/preinst").write_text("#!/bin/sh\necho no way >&2\nexit 1\n")
    (tree / "DEBIAN/preinst").chmod(0o755)
    subprocess.run(["dpkg-deb", "-b", tree, tmp_path / "bad.deb"], check=True, capture_output=True)
    manager = base.load(template.package_manager)
    recipe = recipe_of(world, template)
    with pytest.raises(CommandFailed, match="inside the container") as caught:
        manager.install_files(guest, recipe, [tmp_path / "bad.deb"], NoProgress())
    assert "no way" in caught.value.details
    assert not list((guest.path / "var/cache/vzpkg").iterdir())


def test_a_container_cannot_lead_the_node_astray(
    world: Paths, template: OsTemplate, guest: Chroot, tmp_path: Path
) -> None:
    """Links in the container point out of it; packages still land inside, or nowhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    drop = guest.path / "var/cache/vzpkg"
    shutil.rmtree(drop, ignore_errors=True)  # of an installation before, if there was one
    drop.symlink_to(outside)
    manager = base.load(template.package_manager)
    try:
        with pytest.raises((OSError, CommandFailed)):
            manager.install(guest, recipe_of(world, template), ["jq"], NoProgress())
        assert list(outside.iterdir()) == []
    finally:
        drop.unlink()


def test_the_package_data_of_a_cache(built: cache.CacheFile) -> None:
    with package_data(built, NoProgress()) as root:
        names = {package.name for package in base.load("apt").installed(root)}
    assert {"hostname", "libc6"} <= names


def test_clean(world: Paths, template: OsTemplate) -> None:
    recipe = recipe_of(world, template)
    base.load(template.package_manager).clean(recipe)
    assert not (recipe.data / "lists").exists()
