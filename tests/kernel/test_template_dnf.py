"""dnf templates for real: a small distribution made with rpmbuild and createrepo_c.

The distribution `toy-1-x86_64` has busybox as init and the node's own rpm (with its libraries) as
the container's package manager.
"""

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

BUSYBOX = Path("/bin/busybox")
NEEDED = ("dnf", "rpmbuild", "createrepo_c", "rpm")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        not all(shutil.which(name) for name in NEEDED), reason="needs " + " ".join(NEEDED)
    ),
]

BASE = """\
Name: toybase
Version: 1
Release: 1
Summary: A base system of one program
License: GPL
AutoReqProv: no
Provides: /bin/sh
%description
busybox as init.
%install
mkdir -p %{buildroot}/sbin %{buildroot}/bin %{buildroot}/etc %{buildroot}/usr/bin
mkdir -p %{buildroot}/dev %{buildroot}/proc %{buildroot}/sys %{buildroot}/tmp %{buildroot}/root
cp @BUSYBOX@ %{buildroot}/bin/busybox
ln -s busybox %{buildroot}/bin/sh
ln -s ../bin/busybox %{buildroot}/sbin/init
echo 'root:x:0:0:root:/root:/bin/sh' >%{buildroot}/etc/passwd
echo 'root:secret:19000:0:99999:7:::' >%{buildroot}/etc/shadow
%files
/bin
/sbin
/etc
/usr/bin
/dev
/proc
/sys
/tmp
/root
"""

RPM = """\
Name: toyrpm
Version: 1
Release: 1
Summary: The node's own rpm
License: GPL
AutoReqProv: no
Requires: toybase
%description
rpm with its libraries.
%install
mkdir -p %{buildroot}/usr/bin %{buildroot}/usr/lib/rpm %{buildroot}/etc/rpm
cp /usr/bin/rpm %{buildroot}/usr/bin/rpm
cp -L /usr/bin/rpmdb %{buildroot}/usr/bin/rpmdb
for file in $(ldd /usr/bin/rpm | grep -o '/[^ ]*'); do
    mkdir -p %{buildroot}$(dirname $file); cp -L $file %{buildroot}$file
done
cp -r /usr/lib/rpm/macros /usr/lib/rpm/rpmrc /usr/lib/rpm/platform %{buildroot}/usr/lib/rpm/
echo '%%_dbpath /usr/lib/sysimage/rpm' >%{buildroot}/etc/rpm/macros
%files
/usr/bin/rpm
/usr/bin/rpmdb
/usr/lib/rpm
/etc/rpm
/lib*
"""

HELLO = """\
Name: hello
Version: @VERSION@
Release: 1
Summary: Says hello
License: GPL
BuildArch: noarch
Requires: greeting
%description
A program.
%install
mkdir -p %{buildroot}/usr/bin
echo 'echo hello @VERSION@' >%{buildroot}/usr/bin/hello
%post
echo @VERSION@ >>/tmp/installed
%files
%attr(755,root,root) /usr/bin/hello
"""

GREETING = """\
Name: greeting
Version: 1
Release: 1
Summary: What hello needs
License: GPL
BuildArch: noarch
%description
Data.
%install
mkdir -p %{buildroot}/usr/share
echo hello >%{buildroot}/usr/share/greeting
%files
/usr/share/greeting
"""


def make_rpm(folder: Path, spec: str, repository: Path) -> None:
    """Build one package into the repository."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "one.spec").write_text(spec.replace("@BUSYBOX@", str(BUSYBOX.resolve())))
    defines = {
        "_topdir": folder,
        "_rpmdir": repository,
        "_dbpath": folder / "db",
        "debug_package": "%{nil}",
        "__os_install_post": "%{nil}",
        "_build_id_links": "none",
    }
    words = [word for item in defines.items() for word in ("--define", "{} {}".format(*item))]
    argv = ["rpmbuild", "-bb", "--quiet", *words, folder / "one.spec"]
    subprocess.run(argv, check=True, capture_output=True)


def make_index(repository: Path) -> None:
    subprocess.run(["createrepo_c", "--quiet", repository], check=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    """A node's root with the toy template and its repository."""
    root = tmp_path_factory.mktemp("n")
    for path in (root, *root.parents[:2]):
        path.chmod(0o755)  # the unprivileged user must get to the repository
    repository = root / "repository"
    repository.mkdir()
    specs = [BASE, RPM, GREETING, HELLO.replace("@VERSION@", "1.0")]
    for number, spec in enumerate(specs):
        make_rpm(root / f"build{number}", spec, repository)
    make_index(repository)
    home = root / "vz/template/toy/1/x86_64/config/os/default"
    home.mkdir(parents=True)
    (home / "packages").write_text("toybase\ntoyrpm\n")
    (home / "package_manager").write_text("rpm49x64\n")
    (home / "repositories").write_text("[trusted=yes] $TOY_SERVER\n")
    (root / "etc/vztt").mkdir(parents=True)
    (root / "etc/vztt/url.map").write_text(f"$TOY_SERVER\tfile://{repository}\n")
    yield Paths(root)
    shutil.rmtree(root)


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
        namespaces = ["unshare", "--mount", "--pid", "--net", "--fork", "/usr/sbin/chroot"]
        done = subprocess.run(
            [*namespaces, self.path, *argv],
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
