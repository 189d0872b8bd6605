"""What a running guest is told, and what it tells: settings, addresses, figures."""

from __future__ import annotations

import base64
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from machineguest import Guest, guest
from realnode import world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "guest", "tiny_iso", "world"]
pytestmark = [
    pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img"),
    pytest.mark.long,
]

RESTART = (  # of the agent, by itself
    "port=$(grep -l guest_agent /sys/class/virtio-ports/*/name); port=${port%/name};"
    " (sleep 1; kill $(cat /run/ga.pid); sleep 1; hostname wrong; echo again >/run/again;"
    " qemu-ga -m virtio-serial -p /dev/${port##*/} -t /run -d -f /run/ga.pid)"
    " >/dev/null 2>&1 &"
)


def test_what_a_guest_is_told_and_tells(guest: Guest, tmp_path: Path) -> None:
    disk = os.fspath(tmp_path / "ext2")
    subprocess.run(["mke2fs", "-q", "-t", "ext2", disk, "64M"], check=True)
    words = ("--device-add", "hdd", "--iface", "virtio", "--image", disk)
    guest.prlctl("set", "vm1", *words)
    guest.start()
    figures(guest)
    addresses(guest)
    settings(guest)
    terminal(guest)
    shown(guest)


def figures(guest: Guest) -> None:
    """The guest's own word, once QEMU has asked for it; without one what is seen from outside."""
    guest.inside("mkdir /mnt; mount -t ext4 /dev/vda /mnt")
    guest.inside("dd if=/dev/zero of=/mnt/zero bs=64k count=16 conv=fsync 2>/dev/null")
    rows = read(guest)
    assert int(rows["devices.virtio0.write_total"]) >= 1 << 20
    assert int(rows["devices.virtio0.write_requests"]) > 0
    assert int(rows["devices.scsi1.read_requests"]) > 0  # the disc that it booted from
    assert int(rows["guest.vcpu0.time"]) == int(rows["guest.cpu.time"]) > 0
    assert int(rows["host.cpu.time"]) >= int(rows["guest.cpu.time"])
    assert rows["guest.ram.balloon_actual"] == "192"
    deadline = time.monotonic() + 200
    while "guest.ram.minor_fault" not in (rows := read(guest)):
        assert time.monotonic() < deadline, rows
        time.sleep(0.5)
    total = int(guest.inside("awk '/MemTotal/ {print $2}' /proc/meminfo")) >> 10
    assert abs(int(rows["guest.ram.total"]) - total) < 16
    assert 0 < int(rows["guest.ram.usage"]) < total
    assert not any(name.startswith("guest.fs") for name in rows)
    told = read(guest, "guest.fs*")
    assert told["guest.fs0.name"] == "/mnt", told
    assert 32 < int(told["guest.fs0.free"]) <= int(told["guest.fs0.total"]) <= 64


def read(guest: Guest, pattern: str = "") -> dict[str, str]:
    words = ("--filter", pattern) if pattern else ()
    lines = guest.prlctl("statistics", "vm1", *words).splitlines()
    return dict(line.strip().split(":\t", 1) for line in lines)


def addresses(guest: Guest) -> None:
    """The column `ip` is what the guest has, not what it was given."""
    guest.inside("ip addr add 192.0.2.7/24 dev lo; ip addr add 2001:db8::7/64 dev lo")
    listed = guest.prlctl("list", "vm1", "-H", "-o", "name,ip").split()
    assert listed == ["vm1", "192.0.2.7", "2001:db8::7"]
    assert guest.prlctl("list", "vm1", "-H", "-o", "ip_configured").strip() == "-"


def settings(guest: Guest) -> None:
    """A host name is in force at once; of a guest from a template all else, too, and again."""
    said = guest.prlctl("set", "vm1", "--hostname", "one.example.org")
    assert "successfully" in said
    assert guest.inside("hostname") == "one.example.org\n"
    conf = guest.home / "vm.conf"
    conf.write_text(conf.read_text() + 'OSTEMPLATE=".debian-12-x86_64"\n')
    guest.inside("touch /usr/sbin/pyvz-guest; chmod 755 /usr/sbin/pyvz-guest")
    guest.prlctl("set", "vm1", "--hostname", "two.example.org")
    assert guest.inside("hostname; cat /etc/hostname") == "two.example.org\n" * 2
    guest.inside(RESTART)
    deadline = time.monotonic() + 200
    argv = guest.world.argv("prlctl", "exec", "vm1", "cat /run/again && hostname")
    seen = ""
    while seen != "again\ntwo.example.org\n":
        assert time.monotonic() < deadline, seen
        time.sleep(0.5)
        done = subprocess.run(
            argv, env=guest.world.env, input="", capture_output=True, text=True, check=False
        )
        seen = done.stdout


def shown(guest: Guest) -> None:
    assert guest.prlctl("mount", "vm1", "--info") == "not mounted\n"
    full = guest.prlctl("list", "-i", "-f", "vm1")
    assert re.search(r"\nGuestTools: state=installed version=\d", full)
    assert re.search(r"\nNetwork Shaping: \(-\)\n  ratebound: no\n", full)
    assert "\nSmartMount: (-)\n" in full
    guest.inside("umount /mnt")
    guest.prlctl("set", "vm1", "--device-del", "hdd1")  # raw: it cannot be in a snapshot
    said = guest.prlctl("snapshot", "vm1", "--skip-suspend", "--name", "disks")
    wanted = re.search(r"{.*}", said)
    assert wanted
    told = guest.prlctl("snapshot-list", "vm1", "--id", wanted[0])
    assert "State: poweroff" in told
    assert guest.status == "running"


def terminal(guest: Guest) -> None:
    """A shell at a terminal of its own inside, as `enter` opens it; its exit status is ours."""
    program = base64.b64encode(Path("/usr/bin/script").read_bytes()).decode()
    guest.prlctl("exec", "vm1", "base64 -d >/bin/script; chmod 755 /bin/script", data=program)
    argv = guest.world.argv("prlctl", "enter", "vm1")
    master, slave = pty.openpty()
    with subprocess.Popen(
        argv, env=guest.world.env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as child:
        os.close(slave)
        read_until(master, b"entered into VM")
        os.write(master, b"tty; echo $((6*7))\n")
        assert b"/dev/pts/" in read_until(master, b"42\r\n")
        os.write(master, b"exit 5\n")
        read_until(master, b"exited from VM")
        assert child.wait(120) == 5
    os.close(master)
    deadline = time.monotonic() + 200
    while guest.inside("ls -d /run/pyvz-* 2>/dev/null; true"):
        assert time.monotonic() < deadline
        time.sleep(0.3)


def read_until(master: int, wanted: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + 200
    while wanted not in seen:
        assert select.select([master], [], [], max(0, deadline - time.monotonic()))[0], seen
        seen += os.read(master, 4096)
    return seen
