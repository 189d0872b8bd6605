"""True figures in a whole Debian: services with mounts of their own; lxcfs is killed and hung."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine import Engine, engine, wait_for
from fakenode import engine_node
from images import debian_tar
from pyvz.container import figures, guestinit
from pyvz.linux import namespace
from pyvz.linux.guestroot import GuestRoot
from pyvz.linux.mount import mounts
from pyvz.model.limits import Limits
from pyvz.operations.figures import Figures

__all__ = ["debian_tar", "engine"]
pytestmark = [pytest.mark.long, pytest.mark.requires("program:lxcfs")]
MIB = 1 << 20
PATIENCE = 120


@contextmanager
def looking(watch: Figures) -> Iterator[None]:
    """Look after lxcfs all the time, as vzd does."""
    end = threading.Event()

    def look() -> None:
        while not end.wait(0.5):
            watch.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        watch._lxcfs.end()
        watch._node.runtime.figures.drop()


def test_services_with_mounts_of_their_own_are_served(engine: Engine, debian_tar: Path) -> None:
    root = engine.paths.root / "debian"
    root.mkdir()
    argv = ["tar", "--zstd", "-xpf", debian_tar, "-C", root, "--numeric-owner"]
    subprocess.run([*argv, "--exclude=./dev/*"], check=True, timeout=200)
    with GuestRoot.open(root) as guest:
        kind = guestinit.detect(guest)
    watch = Figures(engine_node(engine))
    watch.ensure()
    spec = engine.spec(root)._replace(
        argv=kind.argv, figures=True, limits=Limits(memory=512 * MIB, pids=1000)
    )
    init = engine.start(spec)
    with looking(watch):
        wait_for(
            lambda: engine.run(spec.uuid, "systemctl", "is-active", "dbus").code == 0, PATIENCE
        )
        options = "-p PrivateTmp=yes -p ProtectSystem=strict -p ProtectHome=yes"
        started = engine.shell(spec.uuid, f"systemd-run --unit=own {options} sleep 1000")
        assert started.code == 0, started.err
        wait_for(lambda: engine.run(spec.uuid, "systemctl", "is-active", "own").code == 0, PATIENCE)
        own = namespace.identity(init.pid, "mnt")
        pids = engine.cgroups.pids(spec.uuid)
        services = [pid for pid in pids if namespace.identity(pid, "mnt") != own]
        assert services
        for number in (signal.SIGKILL, signal.SIGSTOP):
            _strike(watch, number)
            wait_for(lambda: _served(watch, [init.pid, *services]), PATIENCE)
            free = engine.run(spec.uuid, "free", "-b").out.splitlines()
            assert free[1].split()[1] == str(512 * MIB)
        engine.runtime.kill(spec.uuid)


def _strike(watch: Figures, number: int) -> None:
    """Send a signal to lxcfs, and wait until another one serves."""
    daemon = watch.daemon
    assert daemon is not None
    os.kill(daemon.pid, number)
    wait_for(lambda: watch.daemon not in (None, daemon), PATIENCE)


def _served(watch: Figures, pids: list[int]) -> bool:
    """Whether all have the files of the lxcfs that serves, and no others."""
    wanted = {watch._lxcfs.device()}
    return all(
        {each.device for each in mounts(pid=pid) if each.fstype == figures.FSTYPE} == wanted
        for pid in pids
    )
