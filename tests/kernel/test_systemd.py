"""Debian 12 with systemd as init: boots without a failed unit, stops, reboots, powers off.

The root is built once by mmdebstrap from the node's own package sources and kept in /var/tmp.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from engine import Engine, engine, wait_for
from pyvz.container import guestinit
from pyvz.container.runtime import ExitReason
from pyvz.container.spec import ContainerSpec
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.limits import Limits

__all__ = ["engine"]

ARCHIVE = Path("/var/tmp/pyvz-test-debian.tar")
BUILD_TIME = 270

pytestmark = pytest.mark.requires("program:mmdebstrap", "userns")


@pytest.fixture(scope="session")
def archive() -> Path:
    """A minimal Debian with systemd."""
    if not ARCHIVE.exists():
        new = ARCHIVE.with_name(f"pyvz-test-debian-{os.getpid()}.tar")
        include = "--include=systemd,systemd-sysv,dbus,iproute2"
        argv = ["mmdebstrap", "--variant=minbase", include, "bookworm", os.fspath(new)]
        made = subprocess.run(argv, check=False, capture_output=True, timeout=BUILD_TIME)
        if made.returncode != 0:
            pytest.skip("mmdebstrap could not build the root")
        new.rename(ARCHIVE)
    return ARCHIVE


@pytest.fixture
def debian(engine: Engine, archive: Path) -> ContainerSpec:
    """A container of it."""
    root = engine.paths.root / "debian"
    root.mkdir()
    argv = ["tar", "xpf", archive, "-C", root, "--numeric-owner", "--exclude=./dev/*"]
    subprocess.run(argv, check=True, timeout=120)
    with GuestRoot.open(root) as guest:
        kind = guestinit.detect(guest)
    assert kind.name == "systemd"
    return engine.spec(root)._replace(argv=kind.argv, limits=Limits(memory=1 << 30, pids=1000))


def boot(engine: Engine, spec: ContainerSpec) -> None:
    engine.start(spec)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        ran = engine.run(spec.uuid, "systemctl", "is-system-running", "--wait")
        if ran.out not in ("", "offline\n"):
            break
        time.sleep(0.1)  # no bus yet
    failed = engine.run(spec.uuid, "systemctl", "--failed", "--no-legend", "--plain").out
    assert (ran.out, failed) == ("running\n", "")


def test_boot_reboot_stop(engine: Engine, debian: ContainerSpec) -> None:
    engine.watch()
    boot(engine, debian)
    assert engine.shell(debian.uuid, "cat /proc/self/uid_map").out.split()[1] == "655360"
    machine = engine.run(debian.uuid, "cat", "/etc/machine-id").out.strip()
    assert machine == debian.uuid.replace("-", "")
    viewer = socket.socket(fileno=engine.runtime.console(debian.uuid))
    viewer.settimeout(120)
    seen = b""
    while b"login:" not in seen:
        seen += viewer.recv(65536)
    viewer.close()
    engine.run(debian.uuid, "systemctl", "reboot")
    wait_for(lambda: engine.exits)
    assert engine.exits.pop().reason is ExitReason.REBOOT
    boot(engine, debian)
    assert engine.runtime.stop(debian.uuid, guestinit.SYSTEMD, timeout=60)  # 0.4 s when idle
    wait_for(lambda: engine.exits)
    assert engine.exits.pop().reason is ExitReason.HALT


def test_ordered_reboot_and_poweroff_inside(engine: Engine, debian: ContainerSpec) -> None:
    engine.watch()
    boot(engine, debian)
    assert engine.runtime.stop(debian.uuid, guestinit.SYSTEMD, reboot=True, timeout=60)
    wait_for(lambda: engine.exits)
    assert engine.exits.pop().reason is ExitReason.REBOOT
    boot(engine, debian)
    engine.run(debian.uuid, "poweroff")
    wait_for(lambda: engine.exits)
    assert engine.exits.pop().reason is ExitReason.HALT
