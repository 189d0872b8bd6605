"""kill -9 of vzd, the keeper, CRIU and the client while memory goes to disk and comes back.

Afterwards the container runs or is suspended, what it had counted is not forgotten, its connection
lives (unless CRIU itself was killed while it had the sockets in its hands), and nothing is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_suspend import Peer, busy, counted, home, status

from images import busybox_root, busybox_tar
from networld import LAUNCH, NetWorld, wait_for
from networld import networld as world
from pyvz.container.client import KeeperClient

pytestmark = pytest.mark.requires("criu")

__all__ = ["busy", "busybox_root", "busybox_tar", "world"]

VICTIMS = ("vzd", "keeper", "criu", "client")
SLOW = 60.0


def strike(world: NetWorld, verb: str, victim: str, delay: float) -> None:
    """Begin a verb and kill the victim a moment later."""
    argv = [sys.executable, "-IS", "-c", LAUNCH.format("prlctl"), verb, "a"]
    client = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{world.node}", *argv],
        env=world.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(delay)
    for pid in victims(world, victim, client.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if victim in {"vzd", "keeper"}:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)  # the leak fixture makes the test a sub-reaper
    client.wait(SLOW * 2)


def victims(world: NetWorld, victim: str, client: int) -> list[int]:
    if victim == "client":
        return [client]
    if victim == "vzd":
        with contextlib.suppress(OSError, ValueError):
            return [world.vzd()]
        return []
    with contextlib.suppress(Exception):
        keeper = KeeperClient(world.root / "run/pyvz/keeper.sock")
        try:
            if victim == "keeper":
                return [int(keeper.call("ping").data["pid"])]
            return [row["pid"] for row in keeper.call("list").data["workers"]]
        finally:
            keeper.close()
    return []


def settled(world: NetWorld) -> str:
    """Return the status once nobody works on the container any more."""
    deadline = time.monotonic() + SLOW
    while True:
        with contextlib.suppress(AssertionError, ValueError):
            journal = world.root / "var/lib/pyvz/journal"
            over = not any(journal.glob("*.jsonl"))
            found = status(world)
            if over and found not in {"suspending", "starting", "stopping"}:
                return found
        assert time.monotonic() < deadline, "nobody comes to an end with it"
        time.sleep(0.1)


def file_count(world: NetWorld, place: Path) -> int:
    path = place / "fs/root/n"
    with contextlib.suppress(ValueError):
        return int(path.read_text())
    time.sleep(0.2)  # it is being written just now
    return int(path.read_text() or 0)


def sweep(world: NetWorld, seed: int, rounds: int) -> None:
    dice = random.Random(seed)
    peer = Peer(world)
    assert peer.answers()
    place = home(world)
    for _ in range(rounds):
        victim, delay = dice.choice(VICTIMS), dice.uniform(0.0, 0.9)
        verb = "suspend" if status(world) == "running" else "resume"
        before = file_count(world, place)
        strike(world, verb, victim, delay)
        what = (seed, verb, victim, round(delay, 3))
        found = settled(world)
        assert found in {"running", "suspended"}, what
        assert file_count(world, place) >= before, what
        if found == "running":
            wait_for(lambda: file_count(world, place) > before + 1, SLOW)  # noqa: B023
            if victim == "criu" and verb == "suspend" and not peer.answers():
                # The kernel lets the program go on before anybody can mend its socket.
                peer.close()
                peer = Peer(world)
            assert peer.answers(), what
        left = {path.name for path in (place / "dump").iterdir()} - {"Dump"}
        assert not left, what
    if status(world) == "suspended":
        world.prlctl("resume", "a")
    before = counted(world)
    wait_for(lambda: counted(world) > before, SLOW)
    assert peer.answers()
    peer.close()
    assert json.loads(world.prlctl("list", "-a", "-j", "a"))[0]["status"] == "running"


def test_deaths_at_random_moments(busy: NetWorld) -> None:
    sweep(busy, seed=random.randrange(1 << 30), rounds=6)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_many_deaths(busy: NetWorld, seed: int) -> None:
    sweep(busy, seed=seed, rounds=20)
