"""The command lines against the real vzd, keeper and engine, on a container of busybox."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from networld import wait_for
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]


@pytest.fixture
def running(world: World) -> World:
    world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1-x86_64")
    world.run("prlctl", "start", "ct1")
    return world


def test_the_life_of_a_container(world: World) -> None:
    out = world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1")
    assert out == "Creating the Container...\nThe Container has been successfully created.\n"
    again = world.run("prlctl", "create", "ct1", "--vmtype", "ct", code=255)
    assert "Failed to create the Container: " in again
    assert world.run("prlctl", "list") == (
        "UUID                                    STATUS       IP_ADDR         T  NAME\n"
    )
    assert world.run("prlctl", "start", "ct1") == (
        "Starting the CT...\nThe CT has been successfully started.\n"
    )
    assert "Failed to start the CT: " in world.run("prlctl", "start", "ct1", code=255)
    world.run("vzctl", "start", "ct1", code=32)
    [row] = json.loads(world.run("prlctl", "list", "-j"))
    assert (row["name"], row["status"], row["type"]) == ("ct1", "running", "CT")
    uuid = row["uuid"]
    assert world.run("prlctl", "status", "ct1") == "CT ct1 exist running\n"
    assert world.run("vzctl", "status", "ct1") == f"VEID {uuid} exist mounted running\n"
    assert "Failed to remove the CT: " in world.run("prlctl", "delete", "ct1", code=255)
    world.run("prlctl", "pause", "{" + uuid + "}")
    assert world.run("prlctl", "status", uuid) == f"CT {uuid} exist paused\n"
    world.run("prlctl", "resume", "ct1")
    world.run("prlctl", "restart", "ct1")
    assert "forcibly stopped" in world.run("prlctl", "stop", "ct1", "--kill")
    assert "successfully stopped." in world.run("prlctl", "stop", "ct1")
    assert world.run("vzctl", "stop", "ct1") == ""
    world.run("prlctl", "mount", "ct1")
    assert world.run("vzctl", "status", uuid) == f"VEID {uuid} exist mounted down\n"
    root = Path(world.run("prlctl", "mount", "ct1", "--info").strip())
    assert (root / "bin/busybox").exists()
    world.run("prlctl", "umount", "ct1")
    world.run("vzctl", "umount", "ct1", code=40)
    world.run("prlctl", "clone", "ct1", "--name", "ct2")
    names = [row["name"] for row in json.loads(world.run("prlctl", "list", "-a", "-j"))]
    assert names == ["ct1", "ct2"]
    home = world.run("prlctl", "list", "-H", "-o", "home", "ct2").strip()
    world.run("prlctl", "unregister", "ct2")
    world.run("prlctl", "status", "ct2", code=255)
    world.run("prlctl", "register", home, "--preserve-uuid")
    assert world.run("vzctl", "destroy", "ct2").endswith("area was destroyed\n")
    assert not Path(home).exists()


def test_exec_and_enter(running: World) -> None:
    run = running.run
    assert run("prlctl", "exec", "ct1", "echo $((6 * 7)); cat", data="in") == "42\nin"
    run("prlctl", "exec", "ct1", "exit 9", code=9)
    run("vzctl", "exec", "ct1", "false", code=8)
    run("vzctl", "exec2", "ct1", "exit 5", code=5)
    run("vzctl", "exec3", "ct1", "/bin/false", code=1)
    assert run("vzctl", "exec2", "ct1", "-", data="echo piped\n") == "piped\n"
    assert run("prlctl", "enter", "ct1", data="id -u\n") == "0\n"
    script = running.root / "script"
    script.write_text("exit 3\n")
    run("vzctl", "runscript", "ct1", os.fspath(script), code=3)
    inside = run("prlctl", "exec", "ct1", "cat /proc/self/uid_map").split()
    assert inside[0] == "0"
    assert int(inside[1]) >= 65536
    data = "0123456789abcdef" * 65536
    assert run("prlctl", "exec", "ct1", "cat", data=data) == data


def test_a_terminal_inside(running: World) -> None:
    pid, fd = pty.fork()
    if pid == 0:
        argv = running.argv("vzctl", "enter", "ct1")
        os.execvpe(argv[0], argv, running.env)
    seen = b""

    def expect(text: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 120
        while text not in seen:
            assert select.select([fd], [], [], max(0.0, end - time.monotonic()))[0], seen
            seen += os.read(fd, 4096)
        seen = seen.partition(text)[2]

    try:
        expect(b"entered into CT")
        os.write(fd, b"tty; echo $TERM; exit 4\n")
        expect(b"/dev/pts/")
        expect(b"vt100")
        expect(b"exited from CT")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(fd)
    assert os.waitstatus_to_exitcode(status) == 4


def test_console(running: World) -> None:
    process = subprocess.Popen(
        running.argv("prlctl", "console", "ct1"),
        env=running.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    seen = b""
    deadline = time.monotonic() + 120
    while b"to the console" not in seen:  # what is said before it listens may be gone
        assert time.monotonic() < deadline, seen
        running.run("prlctl", "exec", "ct1", "echo to the console > /dev/console")
        while select.select([process.stdout], [], [], 0.5)[0]:
            seen += os.read(process.stdout.fileno(), 4096)
            if b"to the console" in seen:
                break
    process.terminate()
    process.wait(120)
    process.stdout.close()


def test_parameters(running: World) -> None:
    run = running.run
    out = run("prlctl", "set", "ct1", "--cpuunits", "2000", "--description", "a b", "--memsize=64")
    assert out.endswith("\nThe CT has been successfully configured.\n")
    assert "cpuunits 2000" in out
    [row] = json.loads(run("vzlist", "-j", "-o", "cpuunits,description,physpages,numproc"))
    assert (row["cpuunits"], row["description"]) == (2000, "a b")
    assert row["physpages"]["limit"] == 64 * 256
    assert row["numproc"]["held"] > 0
    assert "--cpuunits" in run("prlctl", "set", "ct1", "--cpuunits", "3", code=1)
    run("vzctl", "set", "ct1", "--cpuunits", "3", code=21)
    run("vzctl", "set", "ct1", "--nonsense", "3", code=20)
    assert "Saved parameters" in run("vzctl", "set", "ct1", "--name", "web", "--save")
    assert run("prlctl", "list", "-H", "-o", "name") == "web\n"
    info = json.loads(run("prlctl", "list", "-i", "-j", "web"))
    assert info[0]["Name"] == "web"
    assert info[0]["Hardware"]["cpu"]["cpuunits"] == 2000
    assert "cpuunits=2000" in run("prlctl", "list", "-i", "web")
    assert "guest.processes:\t" in run("prlctl", "statistics", "web")


def test_ctrl_c_in_the_middle_of_create_undoes_it(world: World) -> None:
    world.run("prlctl", "list")
    tar = world.root / "vz/template/cache/busybox-1-x86_64.plain.tar.zst"
    big = world.root / "big"
    big.mkdir()
    (big / "data").write_bytes(os.urandom(64 << 20))
    subprocess.run(["tar", "--zstd", "-cf", tar, "-C", big, "."], check=True)
    pool = world.root / "vz/pool/default"
    process = subprocess.Popen(
        world.argv("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1"),
        env=world.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any(pool.glob(".create-*")) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 130, told
    assert "Cancelling..." in told
    assert [path.name for path in pool.iterdir()] in ([], [".golden"])
    assert not any(path.is_dir() for path in pool.glob(".golden/*"))
    assert json.loads(world.run("prlctl", "list", "-a", "-j")) == []


def test_events(running: World) -> None:
    monitor = subprocess.Popen(
        running.argv("prlctl", "monitor"), env=running.env, stdout=subprocess.PIPE, text=True
    )
    assert monitor.stdout is not None
    while not select.select([monitor.stdout], [], [], 0.1)[0]:  # nobody is told when it listens
        running.run("prlctl", "set", "ct1", "--description", f"{time.monotonic()}")
    running.run("prlctl", "stop", "ct1", "--kill")
    while " ve-stop {" not in (line := monitor.stdout.readline()):
        assert line
    monitor.send_signal(signal.SIGINT)
    assert monitor.wait(120) == 0
    monitor.stdout.close()


def test_the_node(world: World) -> None:
    info = json.loads(world.run("prlsrvctl", "info", "-j"))
    assert info["Hostname"] == os.uname().nodename
    assert "Features:" in world.run("prlsrvctl", "info")
    assert "=== machine ===" in world.run("prlctl", "problem-report")
