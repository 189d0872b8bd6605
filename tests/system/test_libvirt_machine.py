"""virsh over a virtual machine: the tiny guest, emulated, with a scripted tour of commands."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from realnode import World, world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "tiny_iso", "world"]
pytestmark = pytest.mark.requires(
    "root", "program:virsh", "program:qemu-system-x86_64", "program:qemu-img"
)

# (words of virsh, what its output has to contain); in this order, on one machine.
TOUR = [
    ("list --all", r"vm1 +shut off"),
    ("dominfo vm1", r"OS Type: +hvm"),
    ("dominfo vm1", r"Max memory: +196608 KiB"),
    ("dumpxml vm1", r"<type [^>]*>hvm</type>"),
    ("dumpxml vm1", r'<graphics type="vnc" port="-1" autoport="yes"'),
    ("domblklist vm1", r"sda +.*harddisk.hdd"),
    ("domblkinfo vm1 sda", r"Capacity: +68719476736"),
    ("setmaxmem vm1 256M --config", ""),
    ("setmem vm1 256M --config", ""),
    ("dominfo vm1", r"Max memory: +262144 KiB"),
    ("start vm1", "started"),
    ("domstate vm1 --reason", r"running \(booted\)"),
    ("domid vm1", r"^\d+$"),
    ("domcontrol vm1", "ok"),
    ("dumpxml vm1", r'<graphics type="vnc" port="59\d\d" autoport="yes"'),
    ("vncdisplay vm1", r":\d+"),
    ("domstats vm1", r"block\.count=2"),
    ("domstats vm1", r"block\.1\.rd\.bytes=\d+"),
    ("domstats vm1", r"block\.0\.capacity=68719476736"),
    ("domstats vm1", r"block\.0\.fl\.times=\d+"),
    ("domstats vm1", r"vcpu\.0\.time=\d{7}"),
    ("domstats vm1 --balloon", r"balloon\.current=262144"),
    ("dominfo vm1", r"Used memory: +262144 KiB"),
    ("domblkstat vm1 sda", r"rd_req \d+"),
    ("domblkstat vm1", r"rd_bytes \d+"),
    ("dommemstat vm1", r"rss \d+"),
    ("cpu-stats vm1 --total", r"cpu_time +[\d.]+ seconds"),
    ("vcpuinfo vm1", "CPU Affinity"),
    ("vcpucount vm1", "maximum"),
    ("vcpupin vm1", "VCPU +CPU Affinity"),
    ("memtune vm1", r"hard_limit *: 262144"),
    ("schedinfo vm1 --set cpu_shares=2000", r"cpu_shares +: 2000"),
    ("blkiotune vm1 --weight 800", ""),
    ("domiflist vm1", "Interface"),
    ("set-lifecycle-action vm1 crash preserve", ""),
    ("dumpxml vm1", "<on_crash>preserve</on_crash>"),
    ("set-lifecycle-action vm1 crash destroy", "not supported", 1),
    ("detach-device-alias vm1 cdrom0", ""),
    ("detach-device-alias vm1 cdrom0", "no device", 1),
    ("blockjob vm1 sda", "No current block job"),
    ("qemu-monitor-command vm1 {'execute':'query-status'}", '"status": "running"'),
    ("qemu-monitor-command vm1 {'execute':'quit'}", "Only what looks", 1),
    ("qemu-monitor-command vm1 --hmp info status", "VM status: running"),
    ("qemu-monitor-command vm1 --hmp quit", "Only what looks", 1),
    ("iothreadinfo vm1", "No IOThreads"),
    ("dommemstat vm1 --period 2 --live", ""),
    ("domdirtyrate-calc vm1 --seconds 1", "successfully"),
    ("domstats vm1 --dirtyrate", r"dirtyrate\.calc_period=1"),
    ("emulatorpin vm1", r"\*: 0"),
    ("setvcpus vm1 2 --live", ""),
    ("vcpucount vm1 --current --live", "2"),
    ("send-key vm1 KEY_LEFTCTRL KEY_LEFTALT KEY_F1", ""),
    ("send-key vm1 --holdtime 20 KEY_UP", ""),
    ("inject-nmi vm1", ""),
    ("blockresize vm1 sda 65G", "resized"),
    ("domblkinfo vm1 sda", r"Capacity: +69793218560"),
    ("sysinfo", "<sysinfo type=.smbios.>"),
    ("suspend vm1", "suspended"),
    ("domstate vm1 --reason", r"paused \(user\)"),
    ("resume vm1", "resumed"),
    ("reset vm1", "reset"),
    ("autostart vm1", "marked as autostarted"),
    ("managedsave vm1", "saved"),
    ("domstate vm1 --reason", r"shut off \(saved\)"),
    ("managedsave-remove vm1", "Removed"),
    ("dominfo vm1", r"Managed save: +no"),
    ("start vm1", "started"),
    ("snapshot-create-as vm1 one", "created"),
    ("snapshot-list vm1", "running"),
    ("snapshot-create-as vm1 two --disk-only --atomic", "created"),
    ("snapshot-list vm1 --inactive", "shutoff"),
    ("snapshot-list vm1 --active --leaves", r"-+\s*\Z"),
    ("snapshot-create-as vm1 three --live", "--live is not supported", 1),
    ("snapshot-delete vm1 two", "deleted"),
    ("destroy vm1", "destroyed"),
    ("vncdisplay vm1", "", 1),
]


@pytest.fixture
def virsh(world: World, tiny_iso: Path) -> Iterator[Virsh]:
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
    world.run("prlctl", "set", "vm1", "--memsize", "192", "--cpus", "1")
    world.run("prlctl", "set", "vm1", "--device-set", "cdrom0", "--image", os.fspath(tiny_iso))
    world.run("prlctl", "set", "vm1", "--vnc-mode", "auto", "--vnc-passwd", "secret")
    yield Virsh(world, quiet=False)
    world.run("prlctl", "delete", "vm1", "--force")


def test_tour_of_a_machine(virsh: Virsh) -> None:
    wrong = []
    for words, pattern, *code in TOUR:
        try:
            argv = [word.replace("'", '"') for word in str(words).split(" ")]
            printed = virsh(*argv, code=int(code[0]) if code else 0)
        except AssertionError as error:
            wrong.append(f"{words}: {error}"[:400])
            continue
        if not re.search(str(pattern), printed, re.MULTILINE):
            wrong.append(f"{words}: no {pattern} in:\n{printed}")
    assert not wrong, "\n".join(wrong)


def test_a_machine_obeys_the_power_button(world: World, virsh: Virsh, tmp_path: Path) -> None:
    virsh("start", "vm1")
    _await_agent(world)
    picture = tmp_path / "screen.png"
    assert "image/png" in virsh("screenshot", "vm1", os.fspath(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    _look_inside(virsh)
    key = tmp_path / "key"
    key.write_text("ssh-ed25519 AAAA somebody\n")
    virsh("set-user-sshkeys", "vm1", "root", "--file", os.fspath(key))
    assert "AAAA somebody" in virsh("get-user-sshkeys", "vm1", "root")
    virsh("set-user-sshkeys", "vm1", "root", "--file", os.fspath(key), "--remove")
    assert "AAAA" not in virsh("get-user-sshkeys", "vm1", "root")
    virsh("snapshot-create-as", "vm1", "still", "--disk-only", "--quiesce")
    _type_at_the_console(virsh)
    virsh("shutdown", "vm1", "--mode", "acpi")
    assert "shut off" in virsh("domstate", "vm1")
    virsh("undefine", "vm1")
    home = next((world.root / "vz/vmprivate").iterdir())
    world.run("prlctl", "register", os.fspath(home))


# What the agent answers; in this order, on the running machine.
INSIDE = [
    ("qemu-agent-command vm1 {'execute':'guest-ping'}", r'{"return": ?{}}'),
    ("qemu-agent-command vm1 {'execute':'guest-sing'}", "error", 1),
    ("domifaddr vm1 --source agent", r"lo .*127\.0\.0\.1/8"),
    ("domifaddr vm1 --source lease", ""),
    ("domtime vm1", r"Time: \d{10}"),
    ("domtime vm1 --time 1700000000", ""),
    ("domtime vm1", "Time: 17000000"),
    ("guestinfo vm1 --os", r"os\.kernel-release *: \d"),
    ("guestinfo vm1 --hostname", r"hostname *: tiny"),
    ("guestinfo vm1 --interface", r"if\.0\.name *: lo"),
    ("domfsinfo vm1", ""),
    ("guestvcpus vm1", r"online +: 0"),
    ("vcpucount vm1 --guest", "1"),
    ("setvcpus vm1 1 --guest", ""),
    ("setvcpus vm1 9 --guest", "cannot use 9 processors", 1),
    ("domfsfreeze vm1", r"Froze \d+ filesystem"),
    ("domfsthaw vm1", r"Thawed \d+ filesystem"),
    ("domfstrim vm1", ""),
    ("domtime vm1 --sync", ""),
    ("domifaddr vm1 --source arp", ""),
    ("set-user-password vm1 root secret", "set"),
]


def _look_inside(virsh: Virsh) -> None:
    wrong = []
    for words, pattern, *code in INSIDE:
        argv = [word.replace("'", '"') for word in words.split(" ")]
        try:
            printed = virsh(*argv, code=int(code[0]) if code else 0)
        except AssertionError as error:
            wrong.append(f"{words}: {error}"[:600])
            continue
        if not re.search(str(pattern), printed, re.MULTILINE):
            wrong.append(f"{words}: no {pattern} in:\n{printed}")
    assert not wrong, "\n".join(wrong)


def _type_at_the_console(virsh: Virsh) -> None:
    """A long output on the serial line arrives whole at `virsh console`."""
    ours, theirs = pty.openpty()
    console = subprocess.Popen(
        ["virsh", "-q", "-c", virsh.uri, "console", "vm1"], stdin=theirs, stdout=theirs,
        stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        _read_until(ours, b"# ", poke=b"\n")
        os.write(ours, b"seq 1 4000; echo D''ONE\n")
        printed = _read_until(ours, b"DONE").replace(b"\r", b"").split(b"\n")
        numbers = [int(line) for line in printed if line.isdigit()]
        assert numbers == list(range(1, 4001))
        os.write(ours, b"\x1d")  # ^]
        assert console.wait(120) == 0
    finally:
        console.kill()
        console.wait()
        os.close(ours)


def _read_until(descriptor: int, end: bytes, *, poke: bytes = b"") -> bytes:
    """Read until END comes; POKE is typed again whenever nothing does."""
    data = b""
    deadline = time.monotonic() + 120
    while end not in data:
        assert time.monotonic() < deadline, data[-500:]
        if select.select([descriptor], [], [], 1)[0]:
            data += os.read(descriptor, 1 << 16)
        elif poke:
            os.write(descriptor, poke)
    return data


DOMAIN = """
<domain type='vz'>
  <name>vm2</name>
  <uuid>6b7d6c0e-3f35-4f4e-9a1e-0c6d1f5e9b22</uuid>
  <description>A machine</description>
  <memory unit='MiB'>192</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='cdrom'/><boot dev='hd'/></os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact'><model fallback='allow'>Westmere</model>
    <topology sockets='1' cores='1' threads='1'/><feature policy='optional' name='movbe'/></cpu>
  <cputune><quota>60000</quota></cputune><blkiotune><weight>300</weight></blkiotune>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/><source file='{disc}'/><target dev='sda' bus='sata'/>
    </disk>
    <controller type='usb'/>
    <interface type='network'>
      <source network='host-routed'/><mac address='42:1c:00:00:11:22'/><model type='e1000'/>
      <ip address='10.99.0.7' prefix='32'/><link state='down'/>
    </interface>
    <console type='pty'/>
    <graphics type='vnc' port='-1'/>
    <memballoon model='virtio'/>
  </devices>
</domain>
"""


def test_define(world: World, virsh: Virsh, tiny_iso: Path, tmp_path: Path) -> None:
    disk, file = tmp_path / "disk.qcow2", tmp_path / "vm2.xml"
    text = DOMAIN.format(disk=disk, disc=tiny_iso)
    file.write_text(text)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "256M"], check=True)
    file.write_text(text.replace("<controller", "<hostdev/><controller"))
    assert "devices/hostdev" in virsh("define", os.fspath(file), code=1)
    file.write_text(text.replace("Westmere", "Abacus"))
    assert "no processor 'Abacus'" in virsh("define", os.fspath(file), code=1)
    assert "vm2" not in virsh("list", "--all", "--name")
    file.write_text(text)
    virsh("define", os.fspath(file))
    shown = world.run("prlctl", "list", "-i", "vm2")
    for wanted in (
        "192Mb",
        "model=Westmere",
        "features=optional:movbe",
        "card=e1000",
        os.fspath(disk),
        "Boot order: cdrom0 hdd0",
        "10.99.0.7",
    ):
        assert wanted in shown
    assert '<link state="down" />' in virsh("dumpxml", "vm2")
    file.write_text(text.replace("'down'", "'up'"))
    virsh("define", os.fspath(file))
    assert "<link" not in virsh("dumpxml", "vm2")
    virsh("start", "vm2")
    assert ":" in virsh("vncdisplay", "vm2")
    # What dumpxml says can be given back, and changes nothing.
    before = world.run("prlctl", "list", "-i", "vm2")
    file.write_text(virsh("dumpxml", "vm2", "--inactive"))
    virsh("define", os.fspath(file))
    assert _stable(world.run("prlctl", "list", "-i", "vm2")) == _stable(before)
    _redefine_running(world, virsh, file)
    more = tmp_path / "more.raw"
    more.write_bytes(bytes(1 << 20))
    virsh("attach-disk", "vm2", os.fspath(more), "vdb", "--targetbus", "virtio", "--live")
    assert os.fspath(more) in virsh("domblklist", "vm2")
    virsh("change-media", "vm2", "sdh", "--eject", "--live")
    assert os.fspath(tiny_iso) not in virsh("dumpxml", "vm2")
    virsh("destroy", "vm2")
    virsh("detach-disk", "vm2", os.fspath(more), "--config")
    assert os.fspath(more) not in virsh("domblklist", "vm2")
    virsh("change-media", "vm2", "sdh", os.fspath(tiny_iso), "--insert", "--config")
    file.write_text(virsh("dumpxml", "vm2"))
    virsh("undefine", "vm2")
    assert disk.exists()
    virsh("define", os.fspath(file))
    world.run("prlctl", "delete", "vm2")


def _redefine_running(world: World, virsh: Virsh, file: Path) -> None:
    """What can change while it runs does; its state is told as it is, whoever changes it."""
    for verb, state in (("pause", "paused"), ("resume", "running")):
        world.run("prlctl", verb, "vm2")
        assert state in virsh("domstate", "vm2")
        assert re.search(rf"vm2 +{state}", virsh("list"))
    text = virsh("dumpxml", "vm2")
    changed = text.replace("A machine", "Another text").replace(
        '<mac address="42:1c:00:00:11:22" />',
        '<mac address="42:1c:00:00:11:22" /><link state="down"/>',
    )
    file.write_text(changed.replace("</vcpu>", "</vcpu><cputune><shares>500</shares></cputune>"))
    virsh("define", os.fspath(file))
    live = virsh("dumpxml", "vm2")
    for wanted in ("Another text", '<link state="down" />', "<shares>500</shares>"):
        assert wanted in live
    assert "running" in virsh("domstate", "vm2")
    file.write_text(text.replace("<shares>500</shares>", ""))
    virsh("define", os.fspath(file))
    assert "A machine" in virsh("dumpxml", "vm2")


def _stable(text: str) -> str:
    return re.sub(r"Uptime: .*", "", text)


def _await_agent(world: World) -> None:
    deadline = time.monotonic() + 280
    while "installed" not in re.findall(
        r"GuestTools: state=(\S+)", world.run("prlctl", "list", "-i", "vm1")
    ):
        assert time.monotonic() < deadline, "the guest does not boot"
        time.sleep(0.5)
