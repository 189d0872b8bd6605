"""Virtual machines by the command line: a tiny guest, emulated, from its birth to its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from machineguest import Guest, guest
from realnode import world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "guest", "tiny_iso", "world"]
pytestmark = pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img")


def test_life(guest: Guest) -> None:
    assert re.search(r"stopped +- +VM vm1\n", guest.prlctl("list", "-a"))
    guest.start()
    assert guest.inside("uname -s") == "Linux\n"
    assert guest.prlctl("exec", "vm1", "cat", data="hello") == "hello"
    assert guest.inside("echo out; echo err >&2; exit 7", code=7) == "out\nerr\n"
    confined(guest)
    guest.prlctl("pause", "vm1")
    assert guest.status == "paused"
    guest.prlctl("exec", "vm1", "true", code=255)
    guest.prlctl("start", "vm1")  # as the original: a paused one goes on
    guest.inside("echo kept >/root/kept")
    guest.prlctl("suspend", "vm1")
    assert guest.status == "suspended"
    assert "suspended" in guest.prlctl("list", "-a")
    guest.prlctl("resume", "vm1")
    assert guest.inside("cat /root/kept") == "kept\n"
    assert not (guest.home / "dump/Dump").exists()
    guest.prlctl("set", "vm1", "--userpasswd", "root:secret")
    assert "root:$" in guest.inside("cat /etc/shadow") or "secret" in guest.inside(
        "cat /etc/shadow"
    )
    picture = guest.world.root / "screen.png"
    guest.prlctl("capture", "vm1", "--file", os.fspath(picture))
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    guest.prlctl("send-key-event", "vm1", "--key", "ctrl-alt-f2")
    guest.prlctl("send-key-event", "vm1", "--key", "no such key", code=1)
    guest.prlctl("stop", "vm1", "--acpi")
    assert guest.status == "stopped"
    assert "successfully stopped" in guest.prlctl("stop", "vm1")
    guest.prlctl("exec", "vm1", "true", code=255)


def confined(guest: Guest) -> None:
    """QEMU is nobody, in the node's control groups, and may do little."""
    status = Path(f"/proc/{guest.qemu}/status").read_text()
    uid = int(re.search(r"^Uid:\t(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]
    assert uid > 65536
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    groups = Path(f"/proc/{guest.qemu}/cgroup").read_text().splitlines()
    assert all(guest.home.name in group for group in groups), groups
    assert (guest.home / "harddisk.hdd").stat().st_uid == 0


def test_what_is_plugged_in_while_it_runs(guest: Guest) -> None:
    guest.start()
    guest.prlctl("set", "vm1", "--cpus", "2")
    guest.until("ls -d /sys/devices/system/cpu/cpu[0-9]*", "cpu1")
    before = memory(guest)
    guest.prlctl("set", "vm1", "--memsize", "320")
    grown = wait_memory(guest, lambda now: now > before + 100_000)
    guest.prlctl("set", "vm1", "--memsize", "256")
    wait_memory(guest, lambda now: now < grown - 50_000)
    for words in (("--size", "1G"), ("--size", "1G", "--iface", "virtio")):
        guest.prlctl("set", "vm1", "--device-add", "hdd", *words)
    guest.until("cat /proc/partitions", "vda")
    guest.until("cat /proc/partitions", "sdb")
    guest.inside("echo here | dd of=/dev/sdb conv=fsync")
    guest.prlctl("set", "vm1", "--device-set", "hdd1", "--size", "2G")
    guest.until("cat /sys/block/sdb/size", "4194304")
    guest.prlctl("suspend", "vm1")
    guest.prlctl("start", "vm1")
    assert guest.inside("head -c 5 /dev/sdb") == "here\n"
    assert guest.inside("ls -d /sys/devices/system/cpu/cpu1").strip().endswith("cpu1")
    guest.prlctl("set", "vm1", "--device-del", "hdd2", "--destroy-image")
    guest.prlctl("set", "vm1", "--device-del", "hdd1")
    assert "sdb" not in guest.inside("cat /proc/partitions")
    assert not (guest.home / "harddisk2.hdd").exists()
    guest.prlctl("set", "vm1", "--device-add", "hdd", "--image", f"{guest.home}/harddisk1.hdd")
    guest.until("head -c 5 /dev/sdb", "here")
    guest.prlctl("set", "vm1", "--device-disconnect", "cdrom0")
    guest.until("cat /sys/block/sr0/size; dd if=/dev/sr0 of=/dev/null count=1 2>&1; true", "medium")
    assert "restart" in restart_needed(guest, "--cpus", "1")
    guest.prlctl("delete", "vm1", "--force")
    assert not list((guest.world.root / "vz/vmprivate").iterdir())


def memory(guest: Guest) -> int:
    return int(guest.inside("awk '/MemTotal/ {print $2}' /proc/meminfo"))


def wait_memory(guest: Guest, enough: object) -> int:
    deadline = time.monotonic() + 300
    while not enough(now := memory(guest)):  # type: ignore[operator]
        assert time.monotonic() < deadline, now
        time.sleep(0.5)
    return now


def restart_needed(guest: Guest, *words: str) -> str:
    argv = guest.world.argv("prlctl", "set", "vm1", *words)
    done = subprocess.run(argv, env=guest.world.env, capture_output=True, text=True, check=True)
    return done.stderr


def test_who_dies(guest: Guest) -> None:
    guest.start()
    qemu = guest.qemu
    guest.kill_vzd()
    assert guest.status == "running"
    assert guest.qemu == qemu
    assert guest.inside("echo alive") == "alive\n"
    console = attach(guest)
    console.sendall(b"echo tty:$((6*7))\n")
    assert b"tty:42" in read_until(console, b"tty:42")
    console.close()
    os.kill(qemu, signal.SIGKILL)
    guest.await_status("stopped")
    deadline = time.monotonic() + 120
    log = guest.world.root / "var/log/pyvz/events.log"
    while '"reason":"killed"' not in log.read_text().replace(" ", ""):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    guest.prlctl("start", "vm1")
    guest.kill_vzd()
    os.kill(guest.qemu, signal.SIGKILL)  # and nobody hears of it
    guest.await_status("stopped")


def attach(guest: Guest) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(120)
    sock.connect(os.fspath(next((guest.world.root / "run/pyvz/vm").glob("*/console.sock"))))
    return sock


def read_until(sock: socket.socket, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        part = sock.recv(4096)
        assert part, seen
        seen += part
    return seen


@pytest.mark.long
def test_a_guest_that_obeys_nobody(guest: Guest) -> None:
    """It is killed when the time is over, or not at all."""
    guest.start()
    guest.inside("killall acpid; rm /sbin/shutdown")
    guest.inside("(sleep 2; kill -STOP $(pidof qemu-ga)) >/dev/null 2>&1 &")
    time.sleep(4)
    assert "runs on" in guest.prlctl("stop", "vm1", "--noforce", code=255)
    assert guest.status == "running"
    assert "agent" in guest.prlctl("exec", "vm1", "true", code=255)
    assert "forcibly" in guest.prlctl("stop", "vm1")


def test_snapshots_with_memory(guest: Guest) -> None:
    """Back and forth in the tree: memory, disk, CPUs and memory that were plugged in meanwhile."""
    guest.start()
    ids = {}

    def take(name: str) -> None:
        guest.inside(f"echo {name} >/root/mark; echo {name} | dd of=/dev/sda conv=fsync")
        said = guest.prlctl("snapshot", "vm1", "--name", name)
        ids[name] = re.search(r"{.*}", said)[0]  # type: ignore[index]

    def at(name: str, cpus: int) -> None:
        assert guest.inside("cat /root/mark") == f"{name}\n"
        assert guest.inside("head -n 1 /dev/sda") == f"{name}\n"
        found = guest.inside("ls -d /sys/devices/system/cpu/cpu[0-9]*").split()
        assert len(found) == cpus

    take("first")
    guest.prlctl("set", "vm1", "--cpus", "2")
    guest.prlctl("set", "vm1", "--memsize", "320")
    guest.until("ls -d /sys/devices/system/cpu/cpu[0-9]*", "cpu1")
    take("second")
    guest.inside("echo lost >/root/mark")
    guest.prlctl("snapshot-switch", "vm1", "--id", ids["first"])
    at("first", 1)
    guest.kill_vzd()
    guest.prlctl("snapshot-switch", "vm1", "--id", ids["second"])
    at("second", 2)
    listed = guest.prlctl("snapshot-list", "vm1")
    assert f"{ids['first']} *{ids['second']}" in listed
    guest.prlctl("stop", "vm1", "--kill")
    guest.prlctl("snapshot-delete", "vm1", "--id", ids["first"])
    guest.prlctl("snapshot-switch", "vm1", "--id", ids["second"])
    at("second", 2)
    assert "cpus=2" in guest.prlctl("list", "-i", "vm1")
    guest.prlctl("snapshot-delete", "vm1", "--id", ids["second"])
    assert not list((guest.home / "snapshots").iterdir())


def test_bad_input(guest: Guest, tmp_path: Path) -> None:
    home = guest.home
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "x", "1M"], check=True)
    backed = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", tmp_path / "x", "-F", "qcow2"]
    subprocess.run([*backed, tmp_path / "hostile"], check=True)
    (tmp_path / "text").write_text("no disk\n")
    before = (home / "vm.conf").read_text()
    for words, error in (
        (("--device-add", "hdd", "--image", f"{tmp_path}/hostile"), "names another file"),
        (("--device-add", "hdd", "--image", f"{tmp_path}/none/x"), "no directory"),
        (("--device-add", "hdd", "--image", f"{tmp_path}/x", "--recreate"), "not overwritten"),
        (("--device-add", "hdd", "--image", f"{tmp_path}/text"), "no image of a disk"),
        (("--device-add", "nonsense"), "use one of cdrom, hdd, net"),
        (("--device-set", "hdd0", "--size", "1G"), "made smaller"),
        (("--device-del", "hdd7"), "no device"),
        (("--cpus", "many"), "--cpus"),
        (("--device-set", "cdrom0", "--image", "/none.iso"), "cdrom0: there is no image"),
        (("--device-add", "usb", "--device", "ffff:ffff"), "no USB device ffff:ffff"),
        (("--distribution", "nonesuch"), "An incorrect value 'nonesuch'"),
    ):
        words_out = refused(guest, *words)
        assert error in words_out, words_out
    assert (home / "vm.conf").read_text() == before
    assert not list(home.glob("harddisk?.hdd"))
    (home / "harddisk.hdd").write_bytes((tmp_path / "hostile").read_bytes())
    assert "names another file" in guest.prlctl("start", "vm1", code=255)
    guest.prlctl("set", "vm1", "--vnc-mode", "auto")
    (home / "harddisk.hdd").write_bytes((tmp_path / "x").read_bytes())
    assert "no password" in guest.prlctl("start", "vm1", code=255)
    assert guest.status == "stopped"
    guest.prlctl("set", "vm1", "--vnc-passwd", "geheim")
    guest.prlctl("start", "vm1")
    assert re.search(r"mode=auto port=59\d\d", guest.prlctl("list", "-i", "vm1"))
    assert b"geheim" not in Path(f"/proc/{guest.qemu}/cmdline").read_bytes()
    guest.prlctl("stop", "vm1", "--kill")
    guest.prlctl("set", "vm1", "--memsize", "99999999")
    assert "does not have the 99999999 MiB" in guest.prlctl("start", "vm1", code=255)
    assert "not specified" in guest.prlctl("snapshot-switch", "vm1", "--id", "", code=1)


def refused(guest: Guest, *words: str) -> str:
    argv = guest.world.argv("prlctl", "set", "vm1", *words)
    done = subprocess.run(argv, env=guest.world.env, capture_output=True, text=True, check=False)
    assert done.returncode in {1, 255}, (words, done.stdout)
    return done.stderr


def test_copies_and_homes_that_come_and_go(guest: Guest) -> None:
    """Clones, whole and linked; a template in use stays; forgotten and registered again."""
    guest.prlctl("clone", "vm1", "--name", "vm2")
    assert "not a template" in guest.prlctl("clone", "vm1", "--name", "vm3", "--linked", code=255)
    guest.prlctl("set", "vm1", "--template", "yes")
    assert "is a template" in guest.prlctl("start", "vm1", code=255)
    guest.prlctl("clone", "vm1", "--name", "vm3", "--linked")
    assert "linked clone" in guest.prlctl("delete", "vm1", code=255)
    assert "linked clone" in refused(guest, "--template", "no")
    guest.prlctl("start", "vm3")
    guest.prlctl("stop", "vm3", "--kill")
    guest.prlctl("delete", "vm3")
    guest.prlctl("delete", "vm1")
    home = guest.home
    guest.prlctl("unregister", "vm2")
    assert "vm2" not in guest.prlctl("list", "-a")
    guest.prlctl("register", os.fspath(home))
    guest.prlctl("delete", "vm2")
    assert not home.exists()
