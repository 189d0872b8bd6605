"""A tour of virsh commands over a container that virsh itself has defined."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]

pytestmark = pytest.mark.requires("root", "program:virsh")

UUID = "5a7d6c0e-3f35-4f4e-9a1e-0c6d1f5e9b11"
DOMAIN = f"""
<domain type='vz'>
  <name>web</name>
  <uuid>{UUID}</uuid>
  <title>A title</title>
  <description>A description</description>
  <metadata><app:note xmlns:app="http://example.org/app">kept</app:note></metadata>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64'>exe</type><init>/sbin/init</init></os>
  <devices>
    <filesystem type='template'><source name='busybox-1'/><target dir='/'/></filesystem>
    <interface type='network'>
      <source network='host-routed'/><ip address='10.99.0.5' prefix='32'/>
    </interface>
    <console type='pty'/>
    <graphics type='vnc' port='-1'/>
  </devices>
</domain>
"""
# (words of virsh, what its output has to contain); in this order, on one container.
TOUR = [
    ("list --all", r"web +shut off"),
    ("list --name --all", "^web$"),
    ("list --uuid --all", UUID),
    ("list --title --all", "A title"),
    ("dominfo web", r"Max memory: +131072 KiB"),
    ("domuuid web", UUID),
    ("domid web", "-"),
    ("domstate web --reason", r"shut off \(unknown\)"),
    ("dumpxml web", '<source network="host-routed" />'),
    ("dumpxml web --inactive", "kept"),
    ("desc web", "A description"),
    ("desc web --title", "A title"),
    ("desc web --title --new-desc Other", "updated"),
    ("desc web --title", "Other"),
    ("metadata web http://example.org/app", "kept"),
    ("metadata web http://example.org/app --key app --set <note>new</note>", "modified"),
    ("metadata web http://example.org/app", "new"),
    ("start web", "started"),
    ("domstate web --reason", r"running \(booted\)"),
    ("domfsinfo web", r"/ +root +(ext4|btrfs|overlay|xfs|tmpfs)"),
    ("blkdeviotune web root", r"total_bytes_sec *: 0"),
    ("blkdeviotune web root --total-bytes-sec 1048576 --total-iops-sec 300 --live", ""),
    ("blkdeviotune web root", r"total_bytes_sec *: 1048576"),
    ("blkdeviotune web root", r"total_iops_sec *: 300"),
    ("blkdeviotune web root --read-bytes-sec 5", "read_bytes_sec cannot be set", 1),
    ("blkdeviotune web vdz --total-iops-sec 5", "no disk", 1),
    ("blkdeviotune web root --total-bytes-sec 0 --total-iops-sec 0 --config", ""),
    ("domiftune web venet0", r"inbound.average *: 0"),
    ("domiftune web venet0 --inbound 100", "both directions", 1),
    ("domiftune web venet0 --inbound 100 --outbound 100", "prlsrvctl set --shaping on", 1),
    ("domiftune web eth7", "no interface", 1),
    ("domid web", r"^\d+$"),
    ("domname " + UUID, "web"),
    ("dominfo web", r"State: +running"),
    ("domcontrol web", "ok"),
    ("domstats web", "balloon.rss="),
    ("domstats --state --cpu-total", "cpu.time="),
    ("domstats --list-running", "Domain: 'web'"),
    ("dommemstat web", r"rss \d+"),
    ("cpu-stats web --total", r"cpu_time +[\d.]+ seconds"),
    ("vcpuinfo web", "CPU Affinity"),
    ("vcpucount web", "maximum"),
    ("vcpucount web --current --live", "1"),
    ("vcpupin web", "VCPU +CPU Affinity"),
    ("vcpupin web 0 0", ""),
    ("vcpupin web", r"0 +0$"),
    ("vcpupin web 0 r", ""),
    ("vcpupin web 4 0", "no processor 4", 1),
    ("numatune web", r"numa_mode +: strict"),
    ("numatune web --nodeset 0 --mode strict", ""),
    ("numatune web", r"numa_nodeset *: 0"),
    ("numatune web --mode interleave", "strictly", 1),
    ("set-lifecycle-action web reboot restart", ""),
    ("set-lifecycle-action web reboot destroy", "not supported", 1),
    ("detach-device-alias web eth7", "no device", 1),
    ("setvcpus web 2 --live", ""),
    ("vcpucount web --current --live", "2"),
    ("setmem web 160M --live", ""),
    ("dominfo web", r"Max memory: +163840 KiB"),
    ("setmaxmem web 192M --config", ""),
    ("memtune web", r"hard_limit *: 196608"),
    ("memtune web --hard-limit 131072", ""),
    ("schedinfo web", r"cpu_shares +: 1000"),
    ("schedinfo web --set cpu_shares=2000", r"cpu_shares +: 2000"),
    ("schedinfo web --set vcpu_quota=50000", r"vcpu_quota +: 50000"),
    ("schedinfo web --set vcpu_quota=-1", r"vcpu_quota +: -1"),
    ("blkiotune web", r"weight +: \d+"),
    ("blkiotune web --weight 800", ""),
    ("domiflist web", "host-routed"),
    ("domifstat web venet0", r"venet0 rx_bytes \d+"),
    ("domblkstat web root", r"rd_bytes \d+"),
    ("domblkinfo web root", r"Allocation: +\d+"),
    ("suspend web", "suspended"),
    ("domstate web --reason", r"paused \(user\)"),
    ("resume web", "resumed"),
    ("send-process-signal web 1 nop", ""),
    ("send-process-signal web 4194303 term", "no process", 1),
    ("reboot web", "rebooted"),
    ("reset web", "reset"),
    ("autostart web", "marked as autostarted"),
    ("list --autostart --all", "web"),
    ("autostart web --disable", "unmarked"),
    ("list --no-autostart --all", "web"),
    ("domjobinfo web", "Job type: +None"),
    ("domhostname web", "web"),
    ("net-list --all", "host-routed"),
    ("net-info host-routed", r"Active: +yes"),
    ("net-dumpxml host-routed", '<forward mode="route" />'),
    ("net-uuid host-routed", "-"),
    ("pool-list --all", "default +active"),
    ("pool-info default", r"State: +running"),
    ("pool-dumpxml default", "<path>"),
    ("pool-refresh default", "refreshed"),
    ("vol-list default", UUID),
    (f"vol-info {UUID} --pool default", r"Type: +dir"),
    (f"vol-dumpxml {UUID} --pool default", "<key>"),
    (f"vol-path {UUID} --pool default", UUID),
    ("iface-list", r"lo +active +00:00:00:00:00:00"),
    ("iface-list --inactive", r"Name +State"),
    ("iface-dumpxml lo", r'address="127.0.0.1" prefix="8"'),
    ("iface-mac lo", "00:00:00:00:00:00"),
    ("iface-dumpxml nothing0", "no interface 'nothing0'", 1),
    ("iface-begin", "the distribution's own tools", 1),
    ("nodedev-list", "^computer$"),
    ("nodedev-list --tree", r"net_lo_00"),
    ("nodedev-list --cap net", r"net_lo_00_00_00_00_00_00"),
    ("nodedev-dumpxml net_lo_00_00_00_00_00_00", "<interface>lo</interface>"),
    ("nodedev-info computer", r"Active: +yes"),
    ("nodedev-detach net_lo_00_00_00_00_00_00", "left to its operating system", 1),
    ("emulatorpin web", r"\*: 0"),
    ("emulatorpin web 0", ""),
    ("emulatorpin web", r"\*: 0$"),
    ("emulatorpin web r", ""),
    ("dommemstat web --period 5", "is a container", 1),
    ("perf web", "domain_get_perf_events", 1),
    ("secret-list", ""),
    ("nwfilter-list", ""),
    ("node-memory-tune", ""),
    ("pool-capabilities", "<pool type=.dir. supported=.yes.>"),
    ("uri", "vz"),
    ("version", "hypervisor: vz"),
    ("hostname", ""),
    ("nodeinfo", "Memory size"),
    ("nodecpumap", r"CPUs present: +\d"),
    ("nodecpustats", "user:"),
    ("nodememstats", "total"),
    ("freecell", r"Total: \d+ KiB"),
    ("maxvcpus", r"\d"),
    ("capabilities", "<os_type>exe</os_type>"),
    ("domcapabilities", "<domain>vz</domain>"),
    ("destroy web", "destroyed"),
    ("domrename web shop", "successfully renamed"),
    ("domstate shop", "shut off"),
    ("undefine shop", "undefined"),
    ("list --all --name", "^$"),
]


@pytest.fixture
def virsh(world: World, tmp_path: Path) -> Iterator[Virsh]:
    world.run("prlctl", "list", "-a")  # the daemon
    made = Virsh(world, quiet=False)
    file = tmp_path / "web.xml"
    file.write_text(DOMAIN)
    assert "defined" in made("define", str(file))
    yield made
    for name in world.run("prlctl", "list", "-a", "-H", "-o", "name").split():
        world.run("prlctl", "delete", name, "--force")


def test_tour(world: World, virsh: Virsh) -> None:
    home = world.run("prlctl", "list", "-H", "-o", "home", "web").strip()
    wrong = []
    for words, pattern, *code in TOUR:
        try:
            printed = virsh(*str(words).split(" "), code=int(code[0]) if code else 0)
        except AssertionError as error:
            wrong.append(f"{words}: {error}"[:400])
            continue
        if not re.search(str(pattern), printed, re.MULTILINE):
            wrong.append(f"{words}: no {pattern} in:\n{printed}")
    assert not wrong, "\n".join(wrong)
    world.run("prlctl", "register", home, "--preserve-uuid")
