"""kill -9 of vzd, the keeper, CRIU and the client while memory goes to disk and comes back.

Afterwards the container runs or is suspended, what it had counted is not forgotten, its connection
lives, and nothing is left.  Unless CRIU itself is killed while it has the registers of a program or
a socket in its hands: that one may be lost, and when it is the init, the container has stopped.
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
from test_suspend import COUNTER, ECHO, Peer, busy, counted, home, status

from images import busybox_root, busybox_tar
from networld import LAUNCH, NetWorld, wait_for
from networld import networld as world
from pyvz.container.client import KeeperClient
from realnode import at_work

pytestmark = pytest.mark.requires("criu")

__all__ = ["busy", "busybox_root", "busybox_tar", "world"]

VICTIMS = ("vzd", "keeper", "criu", "client")
SLOW = 150.0


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


def settled(world: NetWorld, what: object) -> str:
    """Return the status once nobody works on the container any more."""
    deadline = time.monotonic() + SLOW
    found = ""
    while True:
        with contextlib.suppress(AssertionError, ValueError):
            found = status(world)  # which starts a vzd where there is none
            if not at_work(world.root):
                return status(world)
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: {found} for ever\n" + "\n".join(told(world)), pytrace=False)
        time.sleep(0.1)


def told(world: NetWorld) -> list[str]:
    """Return what a person would look at who finds that nobody comes to an end: who waits where."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_text().replace("\0", " ")
            if str(world.root) in words or words.startswith("criu"):
                found.append(f"{place.name} {words}\n{(place / 'stack').read_text()}")
    for path in sorted((home(world) / "dump").rglob("*.log")):
        found += [str(path), *path.read_text(errors="replace").splitlines()[-20:]]
    journal = world.root / "var/lib/pyvz/journal"
    return [*found, *(path.read_text() for path in journal.glob("*.jsonl"))]


def file_count(world: NetWorld, place: Path) -> int:
    path = place / "fs/root/n"
    with contextlib.suppress(ValueError):
        return int(path.read_text())
    time.sleep(0.2)  # it is being written just now
    return int(path.read_text() or 0)


def whole(world: NetWorld, peer: Peer, before: int) -> bool:
    """Whether the container runs with all its programs and the connection."""
    if status(world) != "running":
        return False
    with contextlib.suppress(AssertionError):
        wait_for(lambda: counted(world) > before + 1, 60.0)
        return peer.answers()
    return False


def begun_again(world: NetWorld, peer: Peer) -> Peer:
    """Start what the death of CRIU has ended, and connect anew; nothing of it may be in the way."""
    peer.close()
    if status(world) != "stopped":
        world.prlctl("stop", "a", "--kill")
    world.prlctl("start", "a")
    world.inside("a", "rm /root/n")
    for text in (COUNTER, ECHO):
        world.inside("a", text)
    wait_for(lambda: counted(world) > 2, SLOW)
    return Peer(world)


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
        found = settled(world, what)
        if (victim, verb) == ("criu", "suspend") and not whole(world, peer, before):
            # It had registers of a program or a socket in its hands, and only it knew the old.
            peer = begun_again(world, peer)
            continue
        assert found in {"running", "suspended"}, what
        assert file_count(world, place) >= before, what
        if found == "running":
            wait_for(lambda: file_count(world, place) > before + 1, SLOW)  # noqa: B023
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
    sweep(busy, seed=seed, rounds=6)
