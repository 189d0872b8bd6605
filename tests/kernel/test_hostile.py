"""Containers whose root is an enemy: nothing of the node is reached, nothing of it is disturbed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from engine import Engine, engine, read_all, wait_for
from pyvz.container.runtime import ExecRequest, ExitReason, Terminal
from pyvz.errors import ExecError, StartError
from pyvz.linux import process

__all__ = ["engine"]


def test_fork_bomb_is_killed(engine: Engine) -> None:
    spec = engine.spec()
    engine.start(spec)
    bomb = "b() { b | b & sleep 0.01; }; b; b; sleep 1000"
    session = engine.runtime.exec(spec.uuid, ExecRequest(("sh", "-c", bomb)))
    for fd in session.fds:
        os.close(fd)
    wait_for(lambda: len(engine.cgroups.pids(spec.uuid)) > 150, timeout=120)
    assert len(engine.cgroups.pids(spec.uuid)) <= 200
    begun = time.monotonic()
    engine.runtime.kill(spec.uuid, timeout=120)
    assert time.monotonic() - begun < 120
    assert engine.cgroups.pids(spec.uuid) == []


def test_exec_into_a_full_container_fails_and_does_not_hang(engine: Engine) -> None:
    spec = engine.spec()
    spec = spec._replace(limits=spec.limits._replace(pids=4))
    engine.start(spec)
    sessions = []
    failed = None
    while failed is None and len(sessions) < 8:
        try:
            sessions.append(engine.runtime.exec(spec.uuid, ExecRequest(("sleep", "1000"))))
        except ExecError as error:
            failed = error
    assert "Resource temporarily unavailable" in str(failed)
    for session in sessions:
        for fd in session.fds:
            os.close(fd)


def test_the_nodes_processes_are_not_there(engine: Engine) -> None:
    spec = engine.spec()
    engine.start(spec)
    ran = engine.shell(spec.uuid, "ls -d /proc/[0-9]*; kill -0 1; cat /proc/1/comm")
    numbers = [int(line.removeprefix("/proc/")) for line in ran.out.split() if "/proc/" in line]
    assert max(numbers) < 30
    assert os.getpid() not in numbers


@pytest.mark.parametrize(
    "attempt",
    [
        "mknod /dev/disk b 254 0",
        "mknod /root/disk b 254 0",
        "cat /dev/vda",
        "echo x >/proc/sys/kernel/core_pattern",
        "echo 1 >/proc/sys/vm/drop_caches",
        "mount -o remount,rw /proc/sys && echo x >/proc/sys/kernel/core_pattern",
        "umount /proc/sys && echo x >/proc/sys/kernel/core_pattern",
        "umount /proc/kcore; head -c 1 /proc/kcore",
        "echo b >/proc/sysrq-trigger",
        "mount -t sysfs s /mnt && echo x >/mnt/kernel/uevent_helper",
        "mount -o remount,rw /sys && echo x >/sys/kernel/uevent_helper",
        "mount -t cgroup -o memory c /mnt && echo -1 >/mnt/memory.limit_in_bytes",
        "mount -t debugfs d /mnt",
        "mount /dev/vda /mnt",
        "mount -t ext4 /dev/vda /mnt",
        "umount /proc/kmsg; head -c 1 /proc/kmsg",
        "dd if=/proc/1/mem bs=1 count=1 of=/dev/port",
        "echo 1 >/sys/fs/cgroup/cgroup.procs.nothing",
        "mkdir /sys/fs/cgroup/../../../fs/cgroup2",
        "hostname " + "x" * 65,
    ],
)
def test_refused(engine: Engine, attempt: str) -> None:
    spec = engine.spec()
    engine.start(spec)
    assert engine.shell(spec.uuid, attempt).code != 0


def test_core_pattern_of_the_node_is_untouched(engine: Engine) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    spec = engine.spec()
    engine.start(spec)
    engine.shell(spec.uuid, "umount /proc/sys; echo '|/x' >/proc/sys/kernel/core_pattern")
    assert Path("/proc/sys/kernel/core_pattern").read_text() == pattern


def test_nothing_of_the_node_in_proc_entries(engine: Engine) -> None:
    """While sessions come and go, their /proc entries never show the node's program or root."""
    spec = engine.spec()
    engine.start(spec)
    spy = (
        "while :; do for p in /proc/[0-9]*; do"
        " readlink $p/exe; readlink $p/cwd; ls $p/fd $p/root/ 2>/dev/null; done; done"
    )
    session = engine.runtime.exec(spec.uuid, ExecRequest(("sh", "-c", spy + " | cat >/root/seen")))
    for _ in range(40):
        engine.run(spec.uuid, "true")
    engine.runtime.kill(spec.uuid)
    for fd in session.fds:
        os.close(fd)
    seen = (spec.root / "root/seen").read_text()
    assert "/bin/busybox" in seen
    assert "python" not in seen
    assert "pyvz" not in seen
    assert "boot" not in seen.split()  # a directory of the node's root


def hostile_tree(engine: Engine, name: str, target: Path) -> Path:
    """A root in which every directory that we use is a link to the node's file system."""
    root = engine.tree(name)
    for directory in ("proc", "sys", "dev", "run", "mnt"):
        (root / directory).rmdir()
        (root / directory).symlink_to(f"../../../../../..{target}/{directory}")
    return root


def test_links_in_the_root_do_not_lead_out(engine: Engine) -> None:
    target = engine.paths.root / "node"
    for directory in ("proc", "sys", "dev", "run", "mnt"):
        (target / directory).mkdir(parents=True)
    before = _listing(target)
    mounts = _mounts_of(engine)
    for number, ids in enumerate((engine.spec().ids, None)):
        root = hostile_tree(engine, f"hostile{number}", target)
        with pytest.raises(StartError):
            engine.start(engine.spec(root)._replace(ids=ids))
        # The same names exist inside now: the container harms itself only.
        for directory in ("proc", "sys", "dev", "run", "mnt"):
            (root / str(target).lstrip("/") / directory).mkdir(parents=True)
        spec = engine.spec(root)._replace(ids=ids)
        engine.start(spec)
        engine.runtime.kill(spec.uuid)
    assert _listing(target) == before
    assert _mounts_of(engine) == mounts


def _mounts_of(engine: Engine) -> list[str]:
    """The node's mounts below this test's root; other tests mount theirs beside it."""
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in table if str(engine.paths.root) in line]


def test_traps_in_dev_and_etc(engine: Engine) -> None:
    """What a session opens inside (ptmx, passwd, group) may be FIFOs, devices or huge."""
    spec = engine.spec()
    engine.start(spec)
    setup = "mount -t tmpfs t /dev/pts; mkfifo /dev/pts/ptmx; rm /etc/passwd /etc/group;"
    for link in ("mkfifo", "rm"):
        (spec.root / "bin" / link).symlink_to("busybox")
    setup += "mkfifo /etc/passwd; ln -s /dev/zero /etc/group"
    assert engine.shell(spec.uuid, setup).code == 0
    begun = time.monotonic()
    with pytest.raises(ExecError, match="terminal"):
        engine.runtime.exec(spec.uuid, ExecRequest(("sh",), terminal=Terminal(24, 80)))
    with pytest.raises(ExecError, match="no user 'web'"):
        engine.run(spec.uuid, "id", user="web")
    assert engine.run(spec.uuid, "true").code == 0
    assert time.monotonic() - begun < 120


def test_programs_that_are_fifos_or_loops(engine: Engine) -> None:
    spec = engine.spec()
    (spec.root / "bin/loop").symlink_to("loop")
    os.mkfifo(spec.root / "bin/fifo", 0o777)
    engine.start(spec)
    assert engine.run(spec.uuid, "loop").code == 126
    assert engine.run(spec.uuid, "fifo").code == 126
    assert engine.run(spec.uuid, "x" * 5000).code == 126


def test_init_cannot_be_a_link_to_the_node(engine: Engine) -> None:
    spec = engine.spec()
    (spec.root / "sbin/init").unlink()
    (spec.root / "sbin/init").symlink_to("/usr/bin/python3")
    with pytest.raises(StartError, match="executing /sbin/init"):
        engine.start(spec._replace(argv=("/sbin/init",)))


def test_stage_killed_at_any_moment(engine: Engine) -> None:
    """kill -9 of the child between clone and exec: an error, and nothing is left."""
    pid = int(engine.keeper.call("ping").data["pid"])
    spec = engine.spec()
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for delay in (0.0, 0.002, 0.005, 0.01, 0.015, 0.02):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):  # what runs here is no test
                deadline = time.monotonic() + 60
                while not (found := children.read_text().split()) and time.monotonic() < deadline:
                    pass
                time.sleep(delay)
                for each in found:
                    os.kill(int(each), signal.SIGKILL)
            os._exit(0)
        try:
            engine.start(spec)
            wait_for(lambda: engine.runtime.running() == {})
        except StartError:
            pass
        os.waitpid(child, 0)
        engine.runtime.kill(spec.uuid)
        engine.runtime.clean(spec.uuid)
    assert engine.cgroups.names() == set()
    engine.start(spec)


def test_closing_everything_and_ignoring_every_signal(engine: Engine) -> None:
    engine.watch()
    spec = engine.spec()
    stubborn = "exec <&- >&- 2>&-; trap '' HUP INT TERM QUIT USR1 USR2; while :; do :; done"
    spec = spec._replace(argv=("/bin/sh", "-c", stubborn))
    engine.start(spec)
    assert engine.run(spec.uuid, "true").code == 0
    engine.runtime.kill(spec.uuid)
    wait_for(lambda: engine.exits)
    assert engine.exits[0].reason is ExitReason.KILLED


def test_daemon_of_a_session_does_not_outlive_the_container(engine: Engine) -> None:
    spec = engine.spec()
    engine.start(spec)
    request = ExecRequest(("sh", "-c", "(trap '' HUP; sleep 1000) >/dev/null 2>&1 & echo $!"))
    session = engine.runtime.exec(spec.uuid, request)
    os.close(session.fds[0])
    assert read_all(session.fds[1])
    os.close(session.fds[2])
    assert session.wait(60) == 0
    left = engine.cgroups.pids(spec.uuid)
    assert len(left) >= 2
    started = {pid: process.start_time(pid) for pid in left}
    engine.runtime.kill(spec.uuid)
    assert not [pid for pid, when in started.items() if process.alive(pid, when)]


def _listing(path: Path) -> list[str]:
    return sorted(os.fspath(each) for each in path.rglob("*"))
