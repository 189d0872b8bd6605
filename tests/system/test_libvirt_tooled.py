"""Virtual machines made, changed and copied by the tools of libvirt as people use them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires(
    "root", "program:virsh", "program:virt-xml", "program:virt-clone", "program:qemu-img"
)

DOMAIN = """
<domain type='vz'>
  <name>vm1</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><source file='{disk}'/><target dev='vda'/></disk>
    <interface type='network'><source network='host-routed'/></interface>
  </devices>
</domain>
"""


@pytest.fixture
def virsh(world: World, tmp_path: Path) -> Iterator[Virsh]:
    """virsh; the machine vm1 has the image disk.qcow2, of whose format nothing was said."""
    world.run("prlctl", "list", "-a")  # the daemon
    image(tmp_path / "disk.qcow2", "qcow2")
    made = Virsh(world)
    file = tmp_path / "vm1.xml"
    file.write_text(DOMAIN.format(disk=tmp_path / "disk.qcow2"))
    made("define", os.fspath(file))
    yield made
    for name in world.run("prlctl", "list", "-a", "-H", "-o", "name").split():
        world.run("prlctl", "delete", name, "--force")


def image(path: Path, kind: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, "256M"], check=True)


def tool(virsh: Virsh, *words: str) -> None:
    """Run a tool of virt-install's family on the node."""
    done = subprocess.run(
        [words[0], "--connect", virsh.uri, *words[1:]],
        env={**os.environ, "LC_ALL": "C", "HOME": "/nonexistent"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)


def disks(world: World, name: str) -> list[str]:
    """The lines about disks of `prlctl list -i`."""
    shown = world.run("prlctl", "list", "-i", name).splitlines()
    return [line.strip() for line in shown if line.strip().startswith("hdd")]


def test_disks_come_and_go_by_the_description(world: World, virsh: Virsh, tmp_path: Path) -> None:
    more = tmp_path / "more.img"
    image(more, "raw")
    assert '<driver name="qemu" type="qcow2" />' in virsh("dumpxml", "vm1")
    tool(virsh, "virt-xml", "vm1", "--add-device", "--disk", f"{more},target=vdb,bus=virtio")
    assert [line.split()[2] for line in disks(world, "vm1")] == ["virtio:0", "virtio:1"]
    assert os.fspath(more) in virsh("domblklist", "vm1")
    tool(virsh, "virt-xml", "vm1", "--edit", "target=vdb", "--disk", "bus=sata")
    assert [line.split()[2] for line in disks(world, "vm1")] == ["virtio:0", "sata:0"]
    tool(virsh, "virt-xml", "vm1", "--edit", "--memory", "160")
    assert '<memory unit="KiB">163840</memory>' in virsh("dumpxml", "vm1")
    # The same disk twice is one: virt-manager describes again what it has attached.
    xml = virsh("dumpxml", "vm1")
    own = xml[xml.index("<disk") : xml.index("</disk>") + len("</disk>")]
    file = tmp_path / "new.xml"
    file.write_text(xml.replace("<devices>", f"<devices>{own}"))
    virsh("define", os.fspath(file))
    assert len(disks(world, "vm1")) == 2
    file.write_text(xml.replace('type="qcow2"', 'type="raw"'))
    assert "is qcow2 and stays so" in virsh("define", os.fspath(file), code=1)
    tool(virsh, "virt-xml", "vm1", "--remove-device", "--disk", "2")
    assert len(disks(world, "vm1")) == 1
    assert more.exists()


def test_no_copy_in_the_home_of_another(world: World, virsh: Virsh) -> None:
    """It would go with the machine whose home it is."""
    world.run("prlctl", "create", "own", "--vmtype", "vm", "-d", "debian")
    home = world.run("prlctl", "list", "-H", "-o", "home", "own").strip()
    xml = virsh("dumpxml", "vm1")
    file = world.root / "new.xml"
    file.write_text(re.sub("file='.*?'|file=\".*?\"", f"file='{home}/copy.hdd'", xml, count=1))
    assert "is the home of an environment" in virsh("define", os.fspath(file), code=1)
    virsh("pool-create-as", "own", "dir", "--target", home)
    words = ("vol-create-as", "own", "copy.hdd", "1M")
    assert "is the home of an environment" in virsh(*words, code=1)
    virsh("pool-destroy", "own")


@pytest.mark.requires("program:qemu-system-x86_64")
def test_a_copy(world: World, virsh: Virsh, tmp_path: Path) -> None:
    """virt-clone describes the copy first, and makes its image afterwards."""
    copy = tmp_path / "copy.qcow2"
    tool(virsh, "virt-clone", "-o", "vm1", "-n", "vm2", "-f", os.fspath(copy))
    virsh("start", "vm2")
    assert "256Mb" in disks(world, "vm2")[0]
    virsh("destroy", "vm2")
    copy.unlink()
    assert "no image" in virsh("start", "vm2", code=1)
