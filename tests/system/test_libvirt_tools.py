"""What OpenStack's nova, Ansible's and Terraform's modules send, played with python-libvirt.

The order of calls and the forms of XML are those of nova's driver (virt_type=parallels), of
community.libvirt (virt, virt_net, virt_pool) and of the provider dmacvicar/libvirt.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from libvirtpython import LibvirtPython, python
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "python", "world"]
pytestmark = pytest.mark.requires("root", "program:virsh")

UUID = "6b7d6c0e-3f35-4f4e-9a1e-0c6d1f5e9b31"
NO_DOMAIN, UNSUPPORTED, OPERATION_INVALID, NO_NETWORK, NO_POOL = 42, 67, 55, 43, 49
OPERATION_UNSUPPORTED = 84
WAIT = (
    "[connection.domainEventRegisterAny(None, number, lambda c, d, *rest, n=number:"
    " tell(n, d.name(), *rest), None) for number in (0, 15, 22)]"
)
NOVA_HEAD = f"""
<domain type="parallels">
  <uuid>{UUID}</uuid>
  <name>instance-00000001</name>
  <memory>196608</memory>
  <vcpu>1</vcpu>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
      <nova:package version="34.0.0"/><nova:name>web</nova:name>
    </nova:instance>
  </metadata>
"""
NOVA_CARD = """
    <interface type="bridge">
      <mac address="fa:16:3e:12:34:56"/><model type="virtio"/><source bridge="inner"/>
      <mtu size="1500"/><target dev="tap12345678-9a"/>
    </interface>
"""
NOVA_MACHINE = f"""{NOVA_HEAD}
  <os><type>hvm</type><boot dev="hd"/></os>
  <features><acpi/><apic/></features>
  <clock offset="utc"/>
  <devices>
    <disk type="file" device="disk">
      <driver type="qcow2" cache="none"/><source file="%s"/><target dev="sda" bus="scsi"/>
    </disk>{NOVA_CARD}
    <controller type="usb" index="0" model="none"/>
    <graphics type="vnc" autoport="yes" listen="127.0.0.1"/>
    <video><model type="vga"/></video>
  </devices>
</domain>"""
NOVA_VOLUME = """
<disk type="file" device="disk">
  <driver name="qemu" type="raw" cache="none" io="native"/>
  <source file="%s"/><target bus="scsi" dev="sdb"/>
  <serial>4b8e8d5c-0f5e-4a55-9d55-2b1d9c7a1f11</serial>
</disk>"""
NOVA_CONTAINER = f"""{NOVA_HEAD}
  <os><type>exe</type><init>/sbin/init</init><boot dev="hd"/></os>
  <clock offset="utc"/>
  <devices>
    <filesystem type="file">
      <driver type="ploop" format="ploop"/><source file="%s"/><target dir="/"/>
    </filesystem>{NOVA_CARD}
    <controller type="usb" index="0" model="none"/>
  </devices>
</domain>"""
# As a container of the node's templates is written; the rest is as Terraform writes it.
CONTAINER = f"""
<domain type="vz">
  <name>web</name><uuid>{UUID}</uuid>
  <memory unit="MiB">%d</memory><vcpu>1</vcpu>
  <os><type arch="x86_64">exe</type><init>/sbin/init</init></os>
  <devices>
    <filesystem type="template"><source name="busybox-1"></source><target dir="/"></target>
    </filesystem>
  </devices>
</domain>"""
NETWORK = """<network><name>shop</name><bridge name='virbr-shop'/>
<ip address='10.66.0.1' netmask='255.255.255.0'><dhcp><range start='10.66.0.10' end='10.66.0.20'/>
</dhcp></ip></network>"""


def nova_starts(python: LibvirtPython) -> None:
    """What nova-compute asks when it starts, and what it needs of the answers."""
    assert python("connection.getLibVersion()") >= 10_000_000
    assert python("connection.getVersion()") >= 7_000_000
    assert python("connection.getType()")
    assert python("connection.getHostname()")
    capabilities = python("connection.getCapabilities()")
    for kind in ("exe", "hvm"):
        assert f"<os_type>{kind}</os_type>" in capabilities
    assert 'type="parallels"' in capabilities
    python("connection.getDomainCapabilities(None, 'x86_64', None, 'parallels')")
    assert python("connection.getInfo()")[2] == os.cpu_count()
    assert python("connection.getCPUMap()")[0] == os.cpu_count()
    python("connection.listAllDevices(2)")
    python(WAIT)
    python("connection.registerCloseCallback(lambda *_: None, None)")
    assert python.fails(f"connection.lookupByUUIDString('{UUID}')")[0] == NO_DOMAIN


@pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img")
@pytest.mark.usefixtures("host_network")
def test_nova_and_a_machine(world: World, python: LibvirtPython, tmp_path: Path) -> None:
    world.run("prlsrvctl", "net", "add", "inner", "--type", "host-only")
    nova_starts(python)
    host = "<cpu><arch>x86_64</arch><topology sockets='1' cores='2' threads='1'/></cpu>"
    assert "<model" in python(f"connection.baselineCPU([{host!r}], 1)")
    disk = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "256M"], check=True)
    python(f"guest = connection.defineXML({NOVA_MACHINE % disk!r})")
    python.hears(0, "instance-00000001", 0, 0, None)
    assert "openstack.org/xmlns/libvirt/nova" in python("guest.XMLDesc(0)")
    python("guest.createWithFlags(1)")  # VIR_DOMAIN_START_PAUSED
    assert python("guest.info()[0]") == 3
    python("guest.resume()")
    python.hears(0, "instance-00000001", 4, 0, None)
    assert python("guest.info()[0]") == 1
    assert python("guest.isPersistent()") == 1
    assert python("guest.ID()") > 0
    assert python("guest.jobStats()")["type"] == 0
    assert python("guest.blockStats('sda')")
    assert python("guest.memoryStats()")["actual"] == 196608
    python("guest.vcpus()")
    nova_attaches(python, tmp_path / "volume")
    python("guest.destroy()")
    python.hears(0, "instance-00000001", 5, 1, None)
    assert python.fails("guest.destroy()")[0] == OPERATION_INVALID
    nova_resizes(python, tmp_path / "volume", NOVA_MACHINE % disk)
    python("guest.undefineFlags(1 | 4)")  # managed save, NVRAM
    python.hears(0, "instance-00000001", 1, 0, None)
    assert python.fails("guest.state()")[0] == NO_DOMAIN
    assert disk.exists()
    world.run("prlsrvctl", "net", "del", "inner")
    home = next((world.root / "vz/vmprivate").iterdir())
    world.run("prlctl", "register", os.fspath(home))


def nova_attaches(python: LibvirtPython, volume: Path) -> None:
    """A volume comes to a machine that runs, and grows; a snapshot of it is a copy."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", volume, "32M"], check=True)
    python(f"guest.attachDeviceFlags({NOVA_VOLUME % volume!r}, 1 | 2)")  # LIVE, CONFIG
    xml = python("guest.XMLDesc(0)")
    assert os.fspath(volume) in xml
    assert "4b8e8d5c-0f5e-4a55-9d55-2b1d9c7a1f11" in xml
    python("guest.blockResize('sdb', 64 << 20, 1)")  # in bytes
    assert python("guest.blockInfo('sdb')")[0] == 64 << 20
    copy = volume.with_name("copy")
    python(f"guest.blockRebase('sdb', {os.fspath(copy)!r}, 0, 8 | 4)")  # COPY, RAW
    python.until("(lambda i: i and i['cur'] == i['end'])(guest.blockJobInfo('sdb'))")
    assert python.fails("guest.blockJobAbort('sdb', 2)")[0] == OPERATION_UNSUPPORTED  # PIVOT
    python("guest.blockJobAbort('sdb')")
    assert copy.stat().st_size == 64 << 20
    assert python("guest.getCPUStats(True)")[0]["cpu_time"] > 0
    assert "cpu.time" in python("connection.getAllDomainStats()[0][1]")


def nova_resizes(python: LibvirtPython, volume: Path, xml: str) -> None:
    """The volume goes, and another flavor comes, by the description of a stopped machine."""
    python(f"guest.detachDeviceFlags({NOVA_VOLUME % volume!r}, 2)")
    assert os.fspath(volume) not in python("guest.XMLDesc(0)")
    larger = xml.replace("<memory>196608", "<memory>262144").replace("<vcpu>1", "<vcpu>2")
    python(f"guest = connection.defineXML({larger!r})")
    assert python("guest.info()[1:4]") == [262144, 262144, 2]


def test_nova_and_a_container(world: World, python: LibvirtPython, tmp_path: Path) -> None:
    """Its disk lies in a directory of nova's, which is no home: it is told so, nothing is made."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "root.hds").write_bytes(b"")
    (disk / "DiskDescriptor.xml").write_text("<Parallels_disk_image/>")
    text = python.fails(f"connection.defineXML({NOVA_CONTAINER % disk!r})")[1]
    assert "ve.conf" in text
    assert python("connection.listAllDomains(0)") == []


@pytest.mark.usefixtures("host_network")
def test_terraform_and_a_container(world: World, python: LibvirtPython) -> None:
    """Made, read, changed (undefined and defined again: it keeps its files), and taken away."""
    socket = world.root / "run/libvirt/virtvzd-sock"
    python(f"connection = libvirt.open('qemu+unix:///system?socket={socket}')")
    python("dom = connection.lookupByName")
    python(f"guest = connection.defineXML({CONTAINER % 128!r})")
    python("guest.createWithFlags(0)")
    python("guest.setAutostart(1)")
    assert python("guest.autostart()") == 1
    world.run("prlctl", "exec", "web", "echo kept >/root/file")
    assert python(f"connection.lookupByUUIDString('{UUID}').state()[0]") == 1
    python("guest.destroy()")
    python("guest.undefine()")
    python(f"guest = connection.defineXML({CONTAINER % 64!r})")
    assert python("guest.info()[1]") == 64 << 10
    python("guest.createWithFlags(0)")
    assert "kept" in world.run("prlctl", "exec", "web", "cat /root/file")
    python("guest.destroy()")
    python("guest.undefineFlags(4)")
    assert python.fails("guest.state()")[0] == NO_DOMAIN
    python(f"connection.defineXML({CONTAINER % 64!r})")


def test_ansible(world: World, python: LibvirtPython, tmp_path: Path) -> None:
    """virt: define, running, info, shutdown; virt_net and virt_pool: define, start, facts, away."""
    python(f"connection.defineXML({CONTAINER % 128!r})")
    assert python("connection.listDefinedDomains()") == ["web"]
    python("dom('web').create()")
    assert python("[connection.lookupByID(n).name() for n in connection.listDomainsID()]") == [
        "web"
    ]
    assert python("dom('web').info()[0]") == 1
    python("dom('web').XMLDesc(0)")
    python("dom('web').shutdown()")
    assert python("dom('web').info()[0]") == 5
    assert python.fails("connection.networkLookupByName('shop')")[0] == NO_NETWORK
    python(f"net = connection.networkDefineXML({NETWORK!r})")
    assert "shop" in python("connection.listNetworks() + connection.listDefinedNetworks()")
    python("net.isActive() or net.create()")
    python("net.setAutostart(1)")
    assert python("[net.isActive(), net.autostart(), net.isPersistent()]") == [1, 1, 1]
    assert python("net.bridgeName()")
    # virt_net asks it of every network there is, also of those that have none.
    bridges = "[connection.networkLookupByName(n).bridgeName() for n in connection.listNetworks()]"
    assert "" in python(bridges)
    assert "10.66.0.10" in python("net.XMLDesc(0)")
    assert python("net.DHCPLeases()") == []
    python("net.destroy()")
    python("net.undefine()")
    assert python.fails("connection.storagePoolLookupByName('images')")[0] == NO_POOL
    xml = f"<pool type='dir'><name>images</name><target><path>{tmp_path}</path></target></pool>"
    python(f"pool = connection.storagePoolDefineXML({xml!r}, 0)")
    assert python("connection.listDefinedStoragePools()") == ["images"]
    python("pool.build(0)")
    python("pool.create(0)")
    assert "images" in python("connection.listStoragePools()")
    python("pool.setAutostart(1)")
    python("pool.refresh(0)")
    assert python("[pool.isActive(), pool.numOfVolumes(), len(pool.listVolumes())]") == [1, 0, 0]
    python("pool.info()")
    python("pool.destroy()")
    python("pool.undefine()")
