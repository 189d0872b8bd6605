"""Containers really started: what they see, what is left when a start fails, how they end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from engine import IDS, Engine, engine, wait_for
from pyvz.container import guestinit
from pyvz.container.devices import DeviceNode
from pyvz.container.runtime import ExitReason
from pyvz.container.spec import Bind
from pyvz.errors import AlreadyRunning, NotRunning, StartError
from pyvz.linux import process

__all__ = ["engine"]


def test_what_a_container_sees(engine: Engine) -> None:
    spec = engine.spec()
    init = engine.start(spec)
    assert process.alive(init.pid, init.start_time)
    assert engine.runtime.running() == {spec.uuid: init}
    seen = engine.shell(spec.uuid, "id; cat /proc/self/uid_map; hostname; echo $container; pwd")
    assert seen.code == 0
    lines = seen.out.splitlines()
    assert lines[0].startswith("uid=0(root) gid=0(root)")
    assert lines[1].split() == ["0", str(IDS.first), "65536"]
    assert lines[2:] == ["tiny", "pyvz", "/"]
    for kind in ("mnt", "pid", "uts", "ipc", "net", "cgroup", "user", "time"):
        ours = os.readlink(f"/proc/self/ns/{kind}")
        assert os.readlink(f"/proc/{init.pid}/ns/{kind}") != ours, kind


def test_dev_has_exactly_the_allowed_nodes(engine: Engine) -> None:
    spec = engine.spec()
    engine.start(spec)
    names = set(engine.run(spec.uuid, "ls", "/dev").out.split())
    assert names == {
        *("console", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm"),
        *("stderr", "stdin", "stdout", "tty", "urandom", "zero"),
    }
    assert engine.shell(spec.uuid, "echo x >/dev/null; head -c 4 /dev/zero | wc -c").out == "4\n"


def test_extra_device_node(engine: Engine) -> None:
    spec = engine.spec()._replace(device_nodes=(DeviceNode("/dev/net/null", "c", 1, 3),))
    spec = spec._replace(device_nodes=(spec.device_nodes[0]._replace(source="/dev/null"),))
    engine.start(spec)
    assert engine.shell(spec.uuid, "echo x >/dev/net/null && ls /dev/net").out == "null\n"


def test_only_cgroup2_and_loopback_are_there(engine: Engine) -> None:
    spec = engine.spec()
    engine.start(spec)
    mounts = engine.run(spec.uuid, "cat", "/proc/self/mountinfo").out
    assert " - cgroup2 " in mounts
    assert " - cgroup " not in mounts
    assert "0::/" in engine.run(spec.uuid, "cat", "/proc/1/cgroup").out
    assert "LOOPBACK,UP" in engine.run(spec.uuid, "ip", "link").out


def test_files_keep_their_owners_on_disk(engine: Engine) -> None:
    spec = engine.spec()
    engine.start(spec)
    assert engine.shell(spec.uuid, "touch /root/made; stat -c %u /etc/passwd").out == "0\n"
    assert (spec.root / "root/made").stat().st_uid == 0


def test_root_below_a_closed_directory(engine: Engine) -> None:
    spec = engine.spec()
    spec.root.parent.chmod(0o700)
    engine.start(spec)
    assert engine.run(spec.uuid, "true").code == 0


def test_binds(engine: Engine) -> None:
    shared = engine.paths.root / "shared"
    shared.mkdir()
    (shared / "file").write_text("of the node")
    spec = engine.spec()._replace(
        binds=(Bind(shared, "/mnt/a"), Bind(shared, "/srv/new/b", read_only=True))
    )
    engine.start(spec)
    assert engine.run(spec.uuid, "cat", "/mnt/a/file", "/srv/new/b/file").out == "of the node" * 2
    assert engine.shell(spec.uuid, "echo changed >/mnt/a/file").code == 0
    assert engine.shell(spec.uuid, "echo no >/srv/new/b/file").code != 0
    assert (shared / "file").read_text() == "changed\n"


def test_privileged(engine: Engine) -> None:
    spec = engine.spec()._replace(ids=None)
    init = engine.start(spec)
    assert os.readlink(f"/proc/{init.pid}/ns/user") == os.readlink("/proc/self/ns/user")
    seen = engine.shell(spec.uuid, "echo x >/dev/null; cat /proc/self/uid_map; ls -l /dev/null")
    assert seen.out.split()[:3] == ["0", "0", "4294967295"]
    assert engine.shell(spec.uuid, "echo b >/proc/sys/kernel/core_pattern").code != 0


def test_capabilities_seccomp_and_no_foreign_descriptor(engine: Engine) -> None:
    spec = engine.spec()._replace(argv=("/bin/sleep", "1000"))
    init = engine.start(spec)
    status = Path(f"/proc/{init.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Seccomp"] == "2"
    assert fields["NoNewPrivs"] == "0"
    bounding = int(fields["CapBnd"], 16)
    assert bounding == int(fields["CapEff"], 16)
    assert not bounding >> 16 & 1  # sys_module
    assert bounding >> 22 & 1  # sys_boot
    assert int(fields["SigIgn"], 16) == 0
    assert int(fields["SigBlk"], 16) == 0
    wait_for(lambda: os.readlink(f"/proc/{init.pid}/exe").endswith("busybox"))
    assert sorted(os.listdir(f"/proc/{init.pid}/fd")) == ["0", "1", "2"]
    assert {os.readlink(f"/proc/{init.pid}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/pts/0"}
    inside = engine.run(spec.uuid, "ls", "/proc/self/fd").out.split()
    assert set(inside) <= {"0", "1", "2", "3"}  # 3: ls itself


def test_nested_namespaces_need_nesting(engine: Engine) -> None:
    plain = engine.spec()
    engine.start(plain)
    assert engine.run(plain.uuid, "unshare", "-u", "true").code != 0
    assert engine.run(plain.uuid, "unshare", "-m", "true").code == 0
    nesting = engine.spec()._replace(nesting=True)
    engine.start(nesting)
    assert engine.run(nesting.uuid, "unshare", "-u", "true").code == 0


def failing_spec(engine: Engine, what: str):
    spec = engine.spec()
    if what == "argv":
        return spec._replace(argv=("/bin/nothing",)), "executing /bin/nothing"
    if what == "root":
        return spec._replace(root=spec.root / "nothing"), "preparing the mount"
    if what == "bind":
        return spec._replace(binds=(Bind(Path("/nothing"), "/mnt"),)), "the mount of /nothing"
    if what == "device":
        path = "/dev/" + "x" * 300  # longer than a name can be
        return spec._replace(
            device_nodes=(DeviceNode(path, "c", 1, 3),)
        ), "binding the node's /dev/x"
    if what == "hostname":
        return spec._replace(hostname="x" * 5000), "setting the host name"
    (spec.root / "proc").rmdir()
    (spec.root / "proc").write_text("a file")
    return spec, "mounting proc on /proc"


@pytest.mark.parametrize("what", ["argv", "root", "bind", "device", "hostname", "proc"])
def test_failed_start_names_the_step_and_leaves_nothing(engine: Engine, what: str) -> None:
    spec, step = failing_spec(engine, what)
    with pytest.raises(StartError, match=step):
        engine.start(spec)
    assert engine.runtime.running() == {}
    assert engine.cgroups.names() == set()


def test_start_twice(engine: Engine) -> None:
    spec = engine.spec()
    engine.start(spec)
    with pytest.raises(AlreadyRunning):
        engine.start(spec)
    assert engine.run(spec.uuid, "true").code == 0


def test_kill_and_start_again_at_once(engine: Engine) -> None:
    spec = engine.spec()
    for _ in range(5):
        init = engine.start(spec)
        engine.runtime.kill(spec.uuid)
        assert not process.alive(init.pid, init.start_time)
        engine.runtime.clean(spec.uuid)
    engine.runtime.kill(spec.uuid)
    with pytest.raises(NotRunning):
        engine.run(spec.uuid, "true")


def test_pause_kill_while_paused(engine: Engine) -> None:
    spec = engine.spec()
    engine.start(spec)
    engine.runtime.pause(spec.uuid)
    with pytest.raises(NotRunning, match="paused"):
        engine.run(spec.uuid, "true")
    engine.runtime.unpause(spec.uuid)
    assert engine.run(spec.uuid, "true").code == 0
    engine.runtime.pause(spec.uuid)
    engine.runtime.kill(spec.uuid)
    assert engine.runtime.running() == {}


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("reboot -f", ExitReason.REBOOT),
        ("poweroff -f", ExitReason.HALT),
        ("kill -TERM 1", ExitReason.EXITED),
    ],
)
def test_ends_are_told_apart(engine: Engine, how: str, reason: ExitReason) -> None:
    engine.watch()
    spec = engine.spec()
    init = engine.start(spec)
    engine.shell(spec.uuid, how)
    wait_for(lambda: engine.exits)
    assert (engine.exits[0].uuid, engine.exits[0].pid) == (spec.uuid, init.pid)
    assert engine.exits[0].reason is reason
    if reason is ExitReason.EXITED:
        assert os.waitstatus_to_exitcode(engine.exits[0].status or 0) == 3


def test_killed_from_outside_and_by_us(engine: Engine) -> None:
    engine.watch()
    spec = engine.spec()
    os.kill(engine.start(spec).pid, signal.SIGKILL)
    wait_for(lambda: engine.exits)
    assert engine.exits[0].reason is ExitReason.KILLED


def test_out_of_memory_is_told(engine: Engine) -> None:
    engine.watch()
    spec = engine.spec()
    eater = ("/bin/sh", "-c", "x=0123456789; while :; do x=$x$x; done")
    spec = spec._replace(argv=eater, limits=spec.limits._replace(memory=16 << 20, swap=0))
    engine.start(spec)
    wait_for(lambda: engine.exits)
    assert engine.exits[0].reason is ExitReason.OOM


def test_busybox_init_stops_orderly(engine: Engine) -> None:
    engine.watch()
    spec = engine.spec()._replace(argv=("/sbin/init",))
    engine.start(spec)
    # What it starts comes after its signal handlers.
    wait_for(lambda: len(engine.cgroups.pids(spec.uuid)) >= 2)
    assert engine.runtime.stop(spec.uuid, guestinit.BUSYBOX, timeout=DEADLINE_OF_BUSYBOX)
    wait_for(lambda: engine.exits)
    assert engine.exits[0].reason is ExitReason.HALT
    assert engine.runtime.stop(spec.uuid, guestinit.BUSYBOX, timeout=0.1)


DEADLINE_OF_BUSYBOX = 60.0


def test_stop_that_is_not_heeded(engine: Engine) -> None:
    spec = engine.spec()
    engine.start(spec)
    assert not engine.runtime.stop(spec.uuid, guestinit.SYSTEMD, timeout=0.2)
    assert spec.uuid in engine.runtime.running()


def test_init_that_ends_at_once(engine: Engine) -> None:
    engine.watch()
    for number in range(1, 6):
        spec = engine.spec()._replace(argv=("/bin/true",))
        engine.start(spec)
        wait_for(lambda count=number: len(engine.exits) == count)
        assert engine.exits[-1].reason is ExitReason.EXITED
        assert engine.exits[-1].status == 0
    log = engine.paths.log / "keeper.log"
    assert log.read_text() == ""
