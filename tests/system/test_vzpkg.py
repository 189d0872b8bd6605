"""vzpkg against the real vzd, keeper and engine: from a template to packages in a container."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import debian_mirror
from realnode import World

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

OS = "debian-12-x86_64"
# An administrator's own choice, and half the time: what a container with systemd needs.
PACKAGES = "init\nsystemd\nsystemd-sysv\nlibpam-systemd\ndbus\n"


@pytest.fixture
def world(short_root: Path) -> Iterator[World]:
    short_root.chmod(0o755)
    made = World(short_root)
    yield made
    made.end()


def test_lists_and_errors(world: World, tmp_path: Path) -> None:
    listed = world.run("vzpkg", "list", "-O")
    assert OS in listed.splitlines()
    assert "nginx" in world.run("vzpkg", "list", "-A", "debian-12")
    assert world.run("vzpkg", "list", "-O", "-c") == ""
    assert ":Debian 12" in world.run("vzpkg", "list", "-O", "-S", "debian-12")
    assert world.run("vzpkg", "info", "debian-12", "package_manager") == "apt\n"
    assert "mariadb-server" in world.run("vzpkg", "info", "-F", OS, "mariadb", "packages")
    for code, words in (
        (24, ("create", "cache", "nosuch-1")),
        (25, ("create", "cache", "almalinux-9")),  # its mirror is not set
        (23, ("remove", "cache", "debian-12")),
        (23, ("status", "debian-12")),
        (24, ("info", "-F", OS, "nosuch")),
        (35, ("info", OS, "nosuch")),
        (16, ("install", "nosuch", "nginx")),
        (35, ("install",)),
        (35, ("frobnicate",)),
        (35, ("list", "--nosuch")),
        (35, ("info", "../../etc")),
        (73, ("create", "appcache")),
    ):
        world.run("vzpkg", *words, code=code)
    assert "url.map" in world.run("vzpkg", "create", "cache", "rocky-9", code=25)
    folder = tmp_path / "toy/1/x86_64"
    (folder / "config/os/default").mkdir(parents=True)
    (folder / "config/os/default/packages").write_text("init\n")
    world.run("vzpkg", "install", "template", os.fspath(folder), code=25)  # no package_manager
    (folder / "config/os/default/package_manager").write_text("apt\n")
    world.run("vzpkg", "install", "template", os.fspath(folder))
    world.run("vzpkg", "install", "template", os.fspath(folder), code=6)
    assert "toy-1-x86_64" in world.run("vzpkg", "list", "-O")
    world.run("vzpkg", "remove", "template", "toy-1-x86_64")
    assert "toy-1-x86_64" not in world.run("vzpkg", "list", "-O")


@pytest.mark.skipif(
    not (shutil.which("mmdebstrap") and debian_mirror()), reason="needs mmdebstrap and a mirror"
)
@pytest.mark.timeout(900)
def test_from_template_to_packages_in_a_container(world: World) -> None:
    assert OS in world.run("vzpkg", "list", "-O")
    chosen = world.root / "vz/template/debian/12/x86_64/config/os/default/packages"
    chosen.write_text(PACKAGES)
    assert world.run("vzpkg", "create", "cache", "debian-12") == f"The cache of {OS} was created\n"
    world.run("vzpkg", "create", "cache", "debian-12", code=29)
    assert OS in world.run("vzpkg", "list", "-O", "-c")
    world.run("vzpkg", "status", "debian-12")
    world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "debian-12")
    world.run("vzpkg", "install", "ct1", "nginx", code=15)
    world.run("vzpkg", "list", "ct1", "-p", code=18)
    world.run("prlctl", "start", "ct1")
    # `start` returns when init runs; its bus is there a moment later.
    bus = "until test -S /run/systemd/private; do sleep 0.1; done"
    state = world.run("prlctl", "exec", "ct1", f"{bus}; systemctl is-system-running --wait")
    assert state == "running\n"
    assert " nginx-common" in world.run("vzpkg", "install", "ct1", "nginx")
    assert world.run("prlctl", "exec", "ct1", "systemctl", "is-active", "nginx") == "active\n"
    world.run("vzpkg", "install", "ct1", "nginx", code=27)
    assert "nginx" in world.run("vzpkg", "list", "ct1", "-A")
    assert "nginx-common" in world.run("vzpkg", "list", "ct1", "-p")
    world.run("vzpkg", "install", "ct1", "-p", "nosuch", code=25)
    world.run("vzpkg", "status", "ct1")
    assert world.run("vzpkg", "update", "ct1") == "Nothing to do\n"
    world.run("vzpkg", "remove", "ct1", "-p", "nginx-common", code=25)  # nginx needs it
    assert " nginx" in world.run("vzpkg", "remove", "ct1", "nginx")
    world.run("vzpkg", "remove", "ct1", "nginx", code=26)
    world.run("vzpkg", "remove", "template", "debian-12", code=19)  # in use
    world.run("vzpkg", "remove", "cache", "debian-12")
    assert world.run("vzpkg", "list", "-O", "-c") == ""
