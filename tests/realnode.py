"""A whole node below a temporary root: vzd, keeper, command lines, a template of busybox."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvz.cli import client
from pyvz.container.client import KeeperClient
from pyvz.errors import DaemonUnreachable
from pyvz.linux import cgroup
from pyvz.store.paths import Paths

SOURCE = Path(client.__file__).resolve().parents[2]
LAUNCH = (
    f"import sys; sys.path.insert(0, {os.fspath(SOURCE)!r}); "
    "from pyvz.cli.{} import main; sys.exit(main(sys.argv[1:]))"
)


class World:
    """A node below a temporary root, and its command lines."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {**os.environ, "PYVZ_ROOT": os.fspath(root), "PYVZ_PYTHON": sys.executable}
        self.env["TERM"] = "vt100"

    def argv(self, program: str, *words: str) -> list[str]:
        return [sys.executable, "-IS", "-c", LAUNCH.format(program), *words]

    def run(self, program: str, *words: str, code: int = 0, data: str = "") -> str:
        """Run a command line, check its exit code, return its output."""
        done = subprocess.run(
            self.argv(program, *words),
            env=self.env,
            input=data,
            capture_output=True,
            text=True,
            timeout=550,
            check=False,
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stdout + done.stderr

    def kill_vzd(self) -> None:
        """kill -9, and wait for its end."""
        end(int((self.root / "run/pyvz/vzd.lock").read_text()), signal.SIGKILL)

    def end(self) -> None:
        """Delete the environments, then end vzd and the keeper."""
        for row in json.loads(self.run("prlctl", "list", "-a", "-j")):
            self.run("prlctl", "delete", row["uuid"], "--force")
        run = self.root / "run/pyvz"
        keeper = KeeperClient(run / "keeper.sock")
        try:
            pid = int(keeper.call("ping").data["pid"])
        finally:
            keeper.close()
        end(int((run / "vzd.lock").read_text()), signal.SIGTERM)
        end(pid, signal.SIGKILL)
        cgroup.detect(f"{Paths(self.root).instance}.slice").remove_parent()


def at_work(root: Path) -> bool:
    """Whether the vzd of a node works at something, or will: it was killed at it.

    A client may be dead before what it asked for has begun.
    """
    return has_tasks(root) or any((Paths(root).lib / "journal").glob("*"))


def has_tasks(root: Path) -> bool:
    """Whether the vzd of a node works at something, or is not there."""
    with contextlib.suppress(DaemonUnreachable), client.connect(str(root), start=False) as asked:
        return bool(asked.call("Node.Tasks").get("tasks"))
    return True


def end(pid: int, number: int) -> None:
    """Signal a process that we started (through a client) and wait for its end."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, number)
        assert select.select([pidfd], [], [], 120)[0], f"{pid} does not end"
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    finally:
        os.close(pidfd)


@pytest.fixture
def world(short_root: Path, busybox_tar: Path) -> Iterator[World]:
    made = World(short_root)
    cache = short_root / "vz/template/cache"
    cache.mkdir(parents=True)
    shutil.copy(busybox_tar, cache / "busybox-1-x86_64.plain.tar.zst")
    yield made
    made.end()
