"""Settings inside a fresh tree, and its packages, through GuestRoot."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvz.linux.guestroot import GuestRoot
from pyvz.template import guest
from pyvz.template.base import Package
from pyvz.template.dpkg import installed_packages

SHADOW = "root:$6$secret:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree as a package manager leaves it, with some traps."""
    root = tmp_path / "root"
    for name in (
        *("etc/ssh", "etc/systemd/system/timers.target.wants", "etc/network", "usr/bin"),
        *("usr/lib/systemd/system", "var/lib/dbus", "var/lib/systemd", "etc/apt/apt.conf.d"),
        "etc/default",
    ):
        (root / name).mkdir(parents=True)
    files = {
        "etc/shadow": SHADOW,
        "etc/shadow-": SHADOW,
        "etc/hostname": "builder\n",
        "etc/machine-id": "0" * 32 + "\n",
        "var/lib/dbus/machine-id": "0" * 32 + "\n",
        "etc/ssh/ssh_host_rsa_key": "private",
        "etc/ssh/sshd_config": "",
        "etc/securetty": "tty1",
        "usr/bin/ssh-keygen": "",
        "usr/lib/systemd/systemd": "",
        "usr/lib/systemd/system/multi-user.target": "",
        "etc/systemd/system/timers.target.wants/fstrim.timer": "",
        "etc/apt/apt.conf.d/99mmdebstrap": "",
    }
    for name, text in files.items():
        (root / name).write_text(text)
    (root / "etc/shadow").chmod(0o640)
    (root / "lib").symlink_to("usr/lib")
    outside = tmp_path / "outside"
    outside.write_text("the node's own\n")
    (root / "etc/resolv.conf").symlink_to(f"../../{outside.name}")
    (root / "etc/fstab").symlink_to(outside)
    return root


def prepare(tree: Path, distribution: str = "debian") -> None:
    with GuestRoot.open(tree) as root:
        guest.prepare(root, distribution)


def test_what_is_per_container_is_gone(tree: Path) -> None:
    prepare(tree)
    assert (tree / "etc/shadow").read_text().startswith("root:*:19000:0:99999:7:::\ndaemon:*:")
    assert (tree / "etc/shadow").stat().st_mode & 0o777 == 0o640
    assert not (tree / "etc/shadow-").exists()
    assert (tree / "etc/machine-id").read_text() == ""
    assert (tree / "var/lib/dbus/machine-id").readlink() == Path("/etc/machine-id")
    assert not (tree / "etc/hostname").exists()
    assert sorted(path.name for path in (tree / "etc/ssh").iterdir()) == ["sshd_config"]
    assert not (tree / "etc/apt/apt.conf.d/99mmdebstrap").exists()
    assert "console" in (tree / "etc/securetty").read_text().split()


def test_links_do_not_lead_out(tree: Path, tmp_path: Path) -> None:
    prepare(tree)
    assert (tmp_path / "outside").read_text() == "the node's own\n"
    assert (tree / "etc/resolv.conf").read_text() == ""
    assert not (tree / "etc/resolv.conf").is_symlink()


def test_units(tree: Path) -> None:
    prepare(tree)
    units = tree / "etc/systemd/system"
    assert (units / "dev-hugepages.mount").readlink() == Path("/dev/null")
    assert (units / "default.target").readlink() == Path(
        "/usr/lib/systemd/system/multi-user.target"
    )
    assert not (units / "timers.target.wants/fstrim.timer").exists()
    assert (units / "multi-user.target.wants/vz-hostkeys.service").is_symlink()
    prepare(tree)  # a second time is fine


def test_a_tree_without_systemd(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/shadow").write_text("root::1::::::\nodd line\n")
    prepare(tmp_path, "toy")
    assert (tmp_path / "etc/shadow").read_text() == "root:*:1::::::\nodd line\n"
    assert not (tmp_path / "etc/systemd").exists()


def test_dpkg_status(tmp_path: Path) -> None:
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(
        "Package: b\nStatus: install ok installed\nVersion: 1:2\nArchitecture: amd64\n"
        "Description: one\n two\n\n"
        "Package: a\nStatus: hold ok installed\nVersion: 1\nArchitecture: all\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\ngarbage\n"
    )
    with GuestRoot.open(tmp_path) as root:
        assert installed_packages(root) == [
            Package("a", "1", "all", ""),
            Package("b", "1:2", "amd64", "one"),
        ]


def test_no_dpkg_status(tmp_path: Path) -> None:
    with GuestRoot.open(tmp_path) as root:
        assert installed_packages(root) == []
