"""prlctl suspend and resume, vzctl chkpnt and restore: programs end to end, with a peer outside."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import debian_tar
from networld import NetWorld, busybox_root, busybox_tar, wait_for
from networld import networld as world
from pyvz.container.client import KeeperClient

pytestmark = pytest.mark.requires("criu")

__all__ = ["busybox_root", "busybox_tar", "debian_tar", "world"]

SOURCE = Path(__file__).resolve().parents[2] / "src"
ADDRESS = "10.77.0.1"
PORT = 7007
# A shell counts ten times a second; nc answers every connection with what it is sent.
COUNTER = (
    "(trap '' HUP; n=0; while :; do n=$((n+1)); echo $n >/root/m; mv /root/m /root/n; sleep 0.1;"
    " done) </dev/null >/dev/null 2>&1 &"
)
LEAP = 100000  # it counts faster as soon as there is /root/later, so that one sees which it was
LEAPING = COUNTER.replace("n=$((n+1));", f"n=$((n+1)); [ ! -e /root/later ] || n=$((n+{LEAP}));")
ECHO = f"(trap '' HUP; exec nc -ll -p {PORT} -e cat) </dev/null >/dev/null 2>&1 &"
CLIENT = f"""
import socket, sys
sock = socket.create_connection(("{ADDRESS}", {PORT}), timeout=200)
for line in sys.stdin:
    sock.sendall(line.encode())
    print(sock.recv(100).decode(), end="", flush=True)
"""


class Peer:
    """A TCP connection from the outside world to the echo of a container."""

    def __init__(self, world: NetWorld) -> None:
        where = f"--net=/run/netns/{world.outside}"
        self._process = subprocess.Popen(
            ["nsenter", where, sys.executable, "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._count = 0

    def answers(self) -> bool:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._count += 1
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{self._count}\n")
            self._process.stdin.flush()
        return self._process.stdout.readline() == f"{self._count}\n"

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@pytest.fixture
def busy(world: NetWorld) -> NetWorld:
    """A container `a` that counts and echoes."""
    world.create("a", "--ipadd", ADDRESS)
    for text in (COUNTER, ECHO):
        world.inside("a", text)
    wait_for(lambda: counted(world) > 2)
    return world


@pytest.fixture
def peer(busy: NetWorld) -> Iterator[Peer]:
    made = Peer(busy)
    try:
        yield made
    finally:
        made.close()


def counted(world: NetWorld) -> int:
    with contextlib.suppress(ValueError):
        return int(world.inside("a", "cat", "/root/n"))
    return 0


def status(world: NetWorld) -> str:
    return str(json.loads(world.prlctl("list", "-a", "-j", "a"))[0]["status"])


def home(world: NetWorld) -> Path:
    return Path(json.loads(world.prlctl("list", "-i", "-j", "a"))[0]["Home"])


def pid_of(world: NetWorld, victim: str) -> int:
    if victim == "vzd":
        return world.vzd()
    keeper = KeeperClient(world.root / "run/pyvz/keeper.sock")
    try:
        return int(keeper.call("ping").data["pid"])
    finally:
        keeper.close()


def test_it_comes_back_with_its_processes_connection_and_addresses(
    busy: NetWorld, peer: Peer
) -> None:
    assert peer.answers()
    busy.inside("a", "ip", "addr", "add", "10.55.0.1/24", "dev", "lo")
    assert "has been successfully suspended" in busy.prlctl("suspend", "a")
    assert status(busy) == "suspended"
    assert busy.vzctl("status", "a").split()[-3:] == ["exist", "unmounted", "suspended"]
    before = int((home(busy) / "fs/root/n").read_text())
    assert "has been successfully resumed" in busy.prlctl("resume", "a")
    assert status(busy) == "running"
    wait_for(lambda: counted(busy) > before + 2)
    assert peer.answers()
    assert "10.55.0.1/24" in busy.inside("a", "ip", "addr", "show", "lo")
    assert busy.reached(ADDRESS)
    assert not (home(busy) / "dump/Dump").exists()
    busy.prlctl("restart", "a")
    assert status(busy) == "running"


def test_start_resumes_and_stop_forgets(busy: NetWorld) -> None:
    busy.vzctl("suspend", "a")
    busy.prlctl("start", "a")
    before = counted(busy)
    wait_for(lambda: counted(busy) > before)
    busy.vzctl("chkpnt", "a")
    busy.prlctl("stop", "a")
    assert status(busy) == "stopped"
    busy.prlctl("start", "a")
    assert "nc -ll" not in busy.inside("a", "ps")


def test_a_dump_file_of_ones_own_and_the_parts_of_chkpnt(busy: NetWorld, tmp_path: Path) -> None:
    file = tmp_path / "dump"
    busy.vzctl("chkpnt", "a", "--dumpfile", str(file))
    assert status(busy) == "stopped"
    busy.vzctl("restore", "a", "--dumpfile", str(file))
    before = counted(busy)
    wait_for(lambda: counted(busy) > before)
    assert file.exists()
    busy.vzctl("chkpnt", "a", "--dump")
    assert status(busy) == "paused"
    busy.vzctl("chkpnt", "a", "--kill")
    assert status(busy) == "suspended"
    busy.vzctl("restore", "a")
    busy.vzctl("chkpnt", "a", "--dump")
    busy.vzctl("chkpnt", "a", "--resume")
    assert status(busy) == "running"
    busy.prlctl("stop", "a")
    assert status(busy) == "stopped"  # what was written is void


def test_a_snapshot_has_its_memory(world: NetWorld) -> None:
    world.create("a", "--ipadd", ADDRESS, layout="ploop")
    world.inside("a", LEAPING)
    wait_for(lambda: counted(world) > 2)
    said = world.prlctl("snapshot", "a")
    guid = said.partition("{")[2].partition("}")[0]
    then = counted(world)
    assert "State: poweron" in world.prlctl("snapshot-list", "a", "-i", guid)
    world.inside("a", "touch", "/root/later")
    wait_for(lambda: counted(world) > then + LEAP)
    world.prlctl("stop", "a")
    world.prlctl("snapshot-switch", "a", "--id", guid)
    assert status(world) == "running"
    assert "later" not in world.inside("a", "ls", "/root")
    now = counted(world)
    assert now < then + LEAP
    wait_for(lambda: counted(world) > now)
    world.prlctl("stop", "a")
    world.vzctl("snapshot-switch", "a", "--id", guid, "--skip-resume")
    assert status(world) == "suspended"
    world.prlctl("stop", "a")
    skipped = world.vzctl("snapshot", "a", "--skip-suspend")
    assert "successfully created" in skipped
    world.prlctl("snapshot-delete", "a", "--id", guid)
    assert not (home(world) / f"dump/{{{guid}}}").exists()


def test_a_session_is_refused_and_a_damaged_dump_stays(busy: NetWorld) -> None:
    argv = ["nsenter", f"--net=/run/netns/{busy.node}", sys.executable, "-IS", "-c"]
    launch = f"import sys; sys.path.insert(0, {os.fspath(SOURCE)!r}); from pyvz.cli.prlctl import"
    words = [f"{launch} main; sys.exit(main(sys.argv[1:]))", "exec", "a", "sleep", "2000"]
    with subprocess.Popen([*argv, *words], env=busy.env, stdin=subprocess.PIPE) as session:
        wait_for(lambda: "sleep 2000" in busy.inside("a", "ps"))
        said = busy.vzctl("suspend", "a", code=231)
        assert "programs of exec or enter" in said
        assert status(busy) == "running"
        session.kill()
    wait_for(lambda: "sleep 2000" not in busy.inside("a", "ps"))
    busy.prlctl("suspend", "a")
    part = home(busy) / "dump/Dump/part-0"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    assert "is damaged" in busy.vzctl("resume", "a", code=17)
    assert status(busy) == "suspended"
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    busy.prlctl("resume", "a")
    before = counted(busy)
    wait_for(lambda: counted(busy) > before)
