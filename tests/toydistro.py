"""A small RPM distribution for tests, made with rpmbuild and createrepo_c.

`toy-1-x86_64` has busybox as init and the node's own rpm (with its libraries) as the container's
package manager; `hello` needs `greeting` and exists as 1.0, and later as 2.0.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvz.store.paths import Paths

BUSYBOX = Path("/bin/busybox")
NEEDED = ("dnf", "rpmbuild", "createrepo_c", "rpm")

missing_programs = pytest.mark.skipif(
    not all(shutil.which(name) for name in NEEDED), reason="needs " + " ".join(NEEDED)
)

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


@contextlib.contextmanager
def toy_node() -> Iterator[Paths]:
    """A node's root with the toy template and its repository in `repository/`.

    Not below pytest's own directory, which only root may enter: the repository is also read by
    the unprivileged user that asks dnf.
    """
    root = Path(tempfile.mkdtemp(prefix="toy-", dir="/tmp"))
    root.chmod(0o755)
    try:
        yield _make(root)
    finally:
        shutil.rmtree(root)


def _make(root: Path) -> Paths:
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
    return Paths(root)
