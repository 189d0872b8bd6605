"""What becomes QEMU: loaded ahead or executed, it is the same process in the end."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from pyvz.vm.launcher import Launcher, Launchers

UID = 3_000_000_000
# Says on descriptor 1 all that its launcher has made of it.
TELL = """
import json, os, resource
told = {line.split(':')[0]: line.split()[1:] for line in open('/proc/self/status')}
links = {}
for name in sorted(os.listdir('/proc/self/fd'), key=int):
    try:
        links[name] = os.readlink('/proc/self/fd/' + name).partition(':')[0]
    except OSError:
        pass
print(json.dumps({
    'argv': open('/proc/self/cmdline').read().split(chr(0)),
    'env': dict(os.environ), 'links': links, 'cwd': os.getcwd(),
    'leader': os.getsid(0) == os.getpid(),
    'limits': [resource.getrlimit(each) for each in (
        resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK)],
    'groups': open('/proc/self/cgroup').read(),
    'owner': os.stat('/proc/self').st_uid,
    **{key: told[key] for key in (
        'Uid', 'Gid', 'Groups', 'Umask', 'NoNewPrivs', 'CapEff', 'CapPrm', 'TracerPid', 'SigIgn')},
}))
"""


def settled(launcher: Launcher, argv: list[str]) -> None:
    """Wait until it has its program ahead."""
    deadline = time.monotonic() + 60
    while not launcher.ahead and time.monotonic() < deadline:
        time.sleep(0.05)
        launcher.settle(argv)
    assert launcher.ahead


def told(launcher: Launcher, argv: list[str], tmp_path: Path, **more: Any) -> dict[str, Any]:
    """Have it become ARGV and return what that says."""
    log = tmp_path / "log"
    ours, theirs = socket.socketpair()
    with ours, theirs, log.open("wb") as file:
        kept = os.dup(theirs.fileno())
        request = {"argv": argv, "procs": [], "uid": UID, "groups": [7, 8], "memlock": 1 << 20}
        launcher.execute(request | more, [kept], file.fileno())
        launcher.await_exec()
        os.close(kept)
        theirs.close()
        ours.settimeout(60)
        ours.recv(1)  # of nothing: it has ended, and so its copy of the descriptor
    launcher.process.end()
    return json.loads(log.read_text())


def test_ahead_it_becomes_the_same_as_executed(tmp_path: Path) -> None:
    argv = ["python3", "-IS", "-c", TELL]
    executed = told(Launcher(), argv, tmp_path)
    launcher = Launcher("python3")
    settled(launcher, argv)
    assert launcher.pid != launcher.process.pid
    ahead = told(launcher, argv, tmp_path)
    assert ahead == executed
    assert ahead["Uid"] == [str(UID)] * 4
    assert ahead["argv"] == [*argv, ""]
    assert ahead["Groups"] == ["7", "8"]
    assert ahead["CapPrm"] == ["0000000000000000"]


def test_it_executes_what_is_not_loaded(tmp_path: Path) -> None:
    argv = ["python3", "-IS", "-c", TELL, *["x"] * 3000]  # too many for the one that is loaded
    launcher = Launcher("python3")
    time.sleep(0.2)
    launcher.settle(argv)
    assert not launcher.ahead
    assert told(launcher, argv, tmp_path)["argv"][-2] == "x"


def test_what_cannot_be_done_is_told_in_the_log(tmp_path: Path) -> None:
    launcher = Launcher("sleep")
    settled(launcher, ["sleep", "600"])
    log = tmp_path / "log"
    with log.open("wb") as file:
        request = {
            "argv": ["sleep", "600"],
            "procs": ["/no/such/group"],
            "uid": UID,
            "groups": [],
            "memlock": 0,
        }
        launcher.execute(request, [], file.fileno())
        launcher.await_exec()
    assert launcher.process.wait(60) == 125
    assert "/no/such/group: No such file or directory" in log.read_text()
    assert not Path(f"/proc/{launcher.pid}/fd/0").exists()
    launcher.process.end()


@pytest.mark.parametrize("program", ["sleep", "no-such-program"])
def test_one_that_is_not_wanted_ends(program: str) -> None:
    launchers = Launchers(program)
    launchers.prepare()
    launcher = launchers.take()
    if program == "sleep":
        settled(launcher, ["sleep", "1"])
    assert launcher.alive
    launcher.dismiss()
    launchers.close()
    assert not launcher.alive
