"""kill -9 of the client, vzd and the keeper at random moments: nothing is lost, nothing is left.

Afterwards the next command works, the container is whole, and it runs or can be started.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time

import pytest

from images import busybox_root, busybox_tar
from pyvz.container.client import KeeperClient
from realnode import World, at_work, has_tasks, world

__all__ = ["busybox_root", "busybox_tar", "world"]

VERBS = (("start", "ct1"), ("stop", "ct1", "--kill"), ("restart", "ct1"), ("exec", "ct1", "true"))


@pytest.fixture
def made(world: World) -> World:
    world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1")
    world.run("prlctl", "set", "ct1", "--description", "precious")
    return world


def _pid_of(world: World, victim: str) -> int | None:
    if victim == "vzd":
        with contextlib.suppress(OSError, ValueError):
            return int((world.root / "run/pyvz/vzd.lock").read_text())
        return None
    with contextlib.suppress(Exception):
        keeper = KeeperClient(world.root / "run/pyvz/keeper.sock")
        try:
            return int(keeper.call("ping").data["pid"])
        finally:
            keeper.close()
    return None


def _strike(world: World, victim: str, verb: tuple[str, ...], delay: float) -> None:
    """Begin a verb and kill the victim a moment later; reap what is our own child."""
    target = _pid_of(world, victim) if victim != "client" else None
    client = subprocess.Popen(
        world.argv("prlctl", *verb),
        env=world.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(delay)
    pid = client.pid if victim == "client" else target
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    client.wait(250)
    if victim != "client" and pid is not None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)  # the leak fixture makes the test a sub-reaper


def _settled(world: World) -> str:
    """Return the status once nobody works on the container any more.

    A verb that failed since the keeper died leaves its record for the next verb, which repairs.
    """
    begun = time.monotonic()
    quiet = False
    while True:
        done = subprocess.run(
            world.argv("prlctl", "list", "-a", "-H", "-o", "status"),
            env=world.env,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        status = done.stdout.strip()
        if quiet and done.returncode == 0 and status in {"running", "stopped", "mounted"}:
            return status
        waited = time.monotonic() - begun
        assert waited < 250, (done.stdout, done.stderr)
        # And of then is what is seen next.
        quiet = not (at_work(world.root) if waited < 30 else has_tasks(world.root))
        if not quiet:
            time.sleep(0.2)


@pytest.mark.parametrize("victim", ["client", "vzd", "keeper"])
@pytest.mark.parametrize(
    "rounds", [5, pytest.param(60, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_killed_in_the_middle(made: World, victim: str, rounds: int) -> None:
    chance = random.Random(f"{victim} {rounds}")
    for _ in range(rounds):
        verb = chance.choice(VERBS)
        _strike(made, victim, verb, chance.uniform(0.0, 0.3))
        _settled(made)
        listed = made.run("prlctl", "list", "-a", "-H", "-o", "name,description")
        assert listed.split() == ["ct1", "precious"]
    deadline = time.monotonic() + 200
    while _settled(made) != "running":
        subprocess.run(
            made.argv("prlctl", "start", "ct1"),
            env=made.env,
            capture_output=True,
            timeout=250,
            check=False,
        )
        assert time.monotonic() < deadline
    assert made.run("prlctl", "exec", "ct1", "echo", "alive") == "alive\n"
    made.run("prlctl", "stop", "ct1", "--kill")
    assert made.run("prlctl", "list", "-a", "-H", "-o", "status").strip() == "stopped"
