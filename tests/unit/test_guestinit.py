"""Which init a tree has."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pyvz.container import guestinit
from pyvz.linux.guestroot import GuestRoot

pytestmark = pytest.mark.usefixtures("real_kernel")

TREES = {
    "debian": ({"/sbin/init": "->/lib/systemd/systemd", "/lib/systemd/systemd": ""}, "systemd"),
    "fedora": (
        {
            "/sbin": "->usr/sbin",
            "/usr/sbin/init": "->../lib/systemd/systemd",
            "/usr/lib/systemd/systemd": "",
        },
        "systemd",
    ),
    "nolink": ({"/usr/lib/systemd/systemd": ""}, "systemd"),
    "alpine": ({"/sbin/init": "->/bin/busybox", "/bin/busybox": ""}, "busybox"),
    "openrc": ({"/sbin/init": "->openrc-init", "/sbin/openrc-init": ""}, "openrc"),
    "wheezy": ({"/sbin/init": "", "/sbin/telinit": "->init", "/etc/inittab": ""}, "sysvinit"),
    "trusty": ({"/sbin/init": "", "/etc/init/rc-sysinit.conf": ""}, "upstart"),
    "own": ({"/sbin/init": ""}, "other"),
    "empty": ({}, "other"),
    "loop": ({"/sbin/init": "->init"}, "other"),
    "outside": ({"/sbin/init": "->../../../../../../bin/busybox"}, "other"),
}


def build(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("->"):
            path.symlink_to(content[2:])
        else:
            path.write_text(content)


@pytest.mark.parametrize("tree", TREES)
def test_detect(tree: str, tmp_path: Path) -> None:
    files, name = TREES[tree]
    build(tmp_path, files)
    with GuestRoot.open(tmp_path) as root:
        kind = guestinit.detect(root)
    assert kind.name == name
    assert guestinit.by_name(kind.name).stop_signal(reboot=False) == kind.stop_signal(reboot=False)


def test_arguments(tmp_path: Path) -> None:
    build(tmp_path, TREES["nolink"][0])
    with GuestRoot.open(tmp_path) as root:
        argv = guestinit.detect(root).argv
    assert argv[0] == "/usr/lib/systemd/systemd"
    assert "systemd.mask=dev-hugepages.mount" in argv


def test_signals_and_commands() -> None:
    assert guestinit.SYSTEMD.stop_signal(reboot=False) == signal.SIGRTMIN + 4
    assert guestinit.SYSTEMD.stop_signal(reboot=True) == signal.SIGRTMIN + 5
    for kind in (guestinit.SYSVINIT, guestinit.OPENRC):
        assert kind.stop_signal(reboot=True) == 0
        assert kind.stop_command(reboot=True)
        assert kind.stop_command(reboot=False) != kind.stop_command(reboot=True)
    assert guestinit.by_name("what").name == "other"
