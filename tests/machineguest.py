"""A virtual machine with the tiny guest, as an administrator has it: by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from realnode import World

PATIENCE = 400.0  # seconds for a guest to boot on a machine that others use


class Guest:
    """A node with a machine `vm1` that has the tiny guest's disc in its drive."""

    def __init__(self, world: World, iso: Path) -> None:
        self.world = world
        self.prlctl("create", "vm1", "--vmtype", "vm", "-d", "debian")
        self.prlctl("set", "vm1", "--memsize", "192", "--cpus", "1")
        self.prlctl("set", "vm1", "--device-set", "cdrom0", "--image", os.fspath(iso))

    def prlctl(self, *words: str, code: int = 0, data: str = "") -> str:
        return self.world.run("prlctl", *words, code=code, data=data)

    def start(self) -> None:
        self.prlctl("start", "vm1")
        self.wait()

    def wait(self) -> None:
        """Wait until the agent answers."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            argv = self.world.argv("prlctl", "exec", "vm1", "true")
            done = subprocess.run(
                argv,
                env=self.world.env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
            if done.returncode == 0:
                return
            assert b"agent" in done.stderr, done.stderr
            time.sleep(0.5)
        pytest.fail("the guest does not boot")

    def inside(self, command: str, *, code: int = 0) -> str:
        return self.prlctl("exec", "vm1", command, code=code)

    def until(self, command: str, wanted: str) -> None:
        """Wait until COMMAND inside prints WANTED."""
        deadline = time.monotonic() + 200
        while (seen := self.inside(command)) and wanted not in seen:
            assert time.monotonic() < deadline, f"{command}: {seen}"
            time.sleep(0.3)

    @property
    def status(self) -> str:
        return self.prlctl("status", "vm1").split()[-1]

    def await_status(self, wanted: str) -> None:
        deadline = time.monotonic() + 200
        while self.status != wanted:
            assert time.monotonic() < deadline, self.status
            time.sleep(0.1)

    @property
    def home(self) -> Path:
        return next((self.world.root / "vz/vmprivate").iterdir())

    @property
    def qemu(self) -> int:
        path = next((self.world.root / "run/pyvz/vm").glob("*/process.json"))
        return int(json.loads(path.read_text())["pid"])

    def kill_vzd(self) -> None:
        self.world.kill_vzd()


@pytest.fixture
def guest(world: World, tiny_iso: Path) -> Guest:
    return Guest(world, tiny_iso)
