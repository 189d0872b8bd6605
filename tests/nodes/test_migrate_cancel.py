"""A migration that is called off, and two of the same container at once: all is as it was."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from pyvz.cli.client import connect
from pyvz.errors import VZError
from twonodes import Side, TwoNodes, busybox_root, busybox_tar, two_nodes, wait_for

__all__ = ["busybox_root", "busybox_tar", "two_nodes"]

pytestmark = pytest.mark.requires("root", "userns", "sshd", "criu")

NAME = "ct"
CALLED_OFF, LOCKED = 25, 3  # exit codes of vzmigrate
LIVE = (
    "Connecting", "Checking", "Reserving", "Copying root.hdd: round 1", "Preparing", "Freezing",
    "Copying root.hdd: last", "Sending memory", "Restoring",
)  # fmt: skip
RESTART = (
    "Connecting", "Checking", "Reserving", "Copying root.hdd: round 1", "Stopping",
    "Copying root.hdd: last",
)  # fmt: skip
TRIES = 5  # that a stage goes by before it was struck is no fault, on a busy machine


def by_ctrl_c(_: Side, process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGINT)


def by_sigterm(_: Side, process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGTERM)


def by_task(side: Side, _: subprocess.Popen[str]) -> None:
    """As any other client may, that knows the number."""
    with connect(str(side.root), start=False) as server:
        for task in server.call("Node.Tasks")["tasks"]:
            with contextlib.suppress(VZError):  # it has just ended, or is past that
                server.call("Node.CancelTask", id=task["id"])


WAYS = (by_ctrl_c, by_sigterm, by_task)


def migrating(here: Side, there: Side, *words: str) -> subprocess.Popen[str]:
    ssh = f"--ssh=-F {here.world.ssh_config}"
    return here.popen("vzmigrate", ssh, "--json", there.name, NAME, *words)


def called_off(
    here: Side,
    there: Side,
    stage: str,
    way: Callable[[Side, subprocess.Popen[str]], None],
    *words: str,
) -> None:
    """It stays where it is, runs, and nothing is left on either node."""
    for _ in range(TRIES):
        if _called_off(here, there, stage, way, *words):
            return
        for name in (NAME, *(word for word in words if not word.startswith("-"))):
            if there.state(name):
                there.vzmigrate("--online", here.name, name)
    raise AssertionError(f"it always went on after {stage}")


def _called_off(
    here: Side,
    there: Side,
    stage: str,
    way: Callable[[Side, subprocess.Popen[str]], None],
    *words: str,
) -> bool:
    """Try it once; False: it had been decided already, and all has moved."""
    before = here.counter(NAME)
    acted = False
    with migrating(here, there, *words) as process:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                told = json.loads(line).get("progress") or {}
                if not acted and str(told.get("stage", "")).startswith(stage):
                    acted = True
                    way(here, process)
    assert acted, f"it was never at {stage}"
    if process.returncode == 0:
        assert (here.state(NAME), there.state(NAME)) == ("", "running")
        return False
    assert process.returncode == CALLED_OFF
    assert (here.state(NAME), there.state(NAME)) == ("running", "")
    assert here.counter(NAME) >= before
    wait_for(lambda: here.counter(NAME) > before)
    wait_for(lambda: not here.leftovers() + there.leftovers())
    return True


def test_called_off(two_nodes: TwoNodes) -> None:
    a, b = two_nodes.a, two_nodes.b
    two_nodes.lan_networks()
    a.create_busy(NAME, "10.99.0.50")
    called_off(a, b, "Reserving", by_sigterm, "--online")
    called_off(a, b, "Sending memory", by_ctrl_c, "--online")
    called_off(a, b, "Restoring", by_task, "--online")
    # and of several, none of those that are left
    a.create("other", start=False)
    called_off(a, b, "Checking", by_ctrl_c, "other", "--online")
    assert (a.state("other"), b.state("other")) == ("stopped", "")


@pytest.mark.long
@pytest.mark.parametrize("words", [("--online",), ()], ids=["live", "restart"])
def test_called_off_in_every_part(two_nodes: TwoNodes, words: tuple[str, ...]) -> None:
    two_nodes.lan_networks()
    two_nodes.a.create_busy(NAME, "10.99.0.50")
    for stage in LIVE if words else RESTART:
        for way in WAYS:
            called_off(two_nodes.a, two_nodes.b, stage, way, *words)


def test_two_at_once(two_nodes: TwoNodes) -> None:
    """One goes, the other is told who has it; also when it is asked for from two sides."""
    a, b = two_nodes.a, two_nodes.b
    two_nodes.lan_networks()
    a.create_busy(NAME, "10.99.0.50")
    here, there = a, b
    config = f"-F {two_nodes.ssh_config}"
    seen: set[bool] = set()
    for pulled in (*[False] * TRIES, *[True] * TRIES):
        if pulled in seen:
            continue
        before = here.counter(NAME)
        first = migrating(here, there, "--online")
        wait_for(lambda here=here: here.journals())  # it has the lease from now on
        if pulled:
            from_there = (f"{here.name}/{NAME}", "localhost")
            second = there.popen("prlctl", "migrate", "--ssh", config, *from_there)
        else:
            second = migrating(here, there, "--online")
        said = [process.communicate(timeout=300)[0] for process in (second, first)]
        assert first.returncode == 0, said
        if "is busy: migrate" in said[0]:  # else it began when the first had ended
            assert second.returncode == (255 if pulled else LOCKED), said
            seen.add(pulled)
        assert (here.state(NAME), there.state(NAME)) == ("", "running")
        assert there.counter(NAME) >= before
        wait_for(lambda here=here, there=there: not here.leftovers() + there.leftovers())
        here, there = there, here
    assert seen == {False, True}
