"""Channels of a virtual machine as streams, and features of its processor, by libvirt's XML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from libvirtpython import LibvirtPython, python
from machineguest import Guest
from realnode import World, world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "python", "tiny_iso", "world"]
pytestmark = pytest.mark.requires(
    "root", "program:virsh", "program:qemu-system-x86_64", "program:qemu-img"
)

NAME = "org.example.port.0"
CHANNEL = f"<channel type='unix'><target type='virtio' name='{NAME}'/></channel>"
OPEN = "stream = connection.newStream(0); dom('vm1').openChannel({!r}, stream, 0)"


class Described:
    """vm1, whose description is changed."""

    def __init__(self, world: World, work: Path) -> None:
        world.run("prlctl", "create", "vm1", "--vmtype", "vm", "--no-hdd")
        world.run("prlctl", "set", "vm1", "--memsize", "64")
        self.virsh, self._file = Virsh(world), work / "vm1.xml"

    def change(self, part: str, place: str, code: int = 0) -> str:
        """Put PART before PLACE into the description and define it again."""
        told = re.sub(r"<cpu .*</cpu>\s*", "", self.virsh("dumpxml", "vm1"), flags=re.DOTALL)
        self._file.write_text(told.replace(place, part + place))
        return self.virsh("define", str(self._file), code=code)


@pytest.fixture
def described(world: World, tmp_path: Path) -> Iterator[Described]:
    yield Described(world, tmp_path)
    world.run("prlctl", "delete", "vm1", "--force")


def test_a_channel_is_a_stream(described: Described, python: LibvirtPython) -> None:
    """One client at a time; what is not there is told."""
    virsh = described.virsh
    described.change(CHANNEL, "</devices>")
    assert f'name="{NAME}"' in virsh("dumpxml", "vm1")
    assert "not running" in python.fails(OPEN.format(NAME))[1]
    virsh("start", "vm1")
    told = virsh("dumpxml", "vm1")
    assert f'name="{NAME}" state="disconnected"' in told
    assert re.search(r'<source mode="bind" path="\S+/channel-0.sock"', told)
    described.change("", "</devices>")  # that of one that runs is taken back as well
    python(OPEN.format(NAME))
    python("first = stream")
    assert "in use" in python.fails(OPEN.format(NAME))[1]
    python(OPEN.format("org.qemu.guest_agent.0"))
    assert "no channel" in python.fails(OPEN.format("org.other.0"))[1]
    python("first.abort()")
    python(f"[{OPEN.split('; ')[1].format(NAME)} for stream in [connection.newStream(0)]]")
    virsh("destroy", "vm1")
    virsh("start", "vm1")
    virsh("managedsave", "vm1")
    virsh("start", "vm1")
    assert f'name="{NAME}" state="disconnected"' in virsh("dumpxml", "vm1")


def test_features_of_a_processor(world: World, described: Described) -> None:
    """On and off; one that is required and cannot be had (by emulation) is told at the start."""
    virsh = described.virsh
    with (world.root / "etc/vz/vz.conf").open("a") as file:
        file.write("VM_ACCELERATOR=tcg\n")
    described.change(
        "<cpu mode='custom'><model>Westmere</model><feature policy='require' name='movbe'/>"
        "<feature policy='disable' name='aes'/></cpu>",
        "<clock",
    )
    told = virsh("dumpxml", "vm1")
    assert '<feature policy="require" name="movbe"' in told
    assert '<feature policy="disable" name="aes"' in told
    assert "features=require:movbe disable:aes" in world.run("prlctl", "list", "-i", "vm1")
    virsh("start", "vm1")
    virsh("managedsave", "vm1")
    virsh("start", "vm1")
    virsh("destroy", "vm1")
    described.change("<cpu><feature policy='require' name='avx512f'/></cpu>", "<clock")
    assert '<cpu mode="host-passthrough"' in virsh("dumpxml", "vm1")
    assert "cannot have avx512f" in virsh("start", "vm1", code=1)
    assert world.run("prlctl", "status", "vm1").split()[-1] == "stopped"
    wrong = "<cpu><feature policy='{}' name='{}'/></cpu>"
    assert "no feature 'avx1024'" in described.change(wrong.format("force", "avx1024"), "<clock", 1)
    assert "forbid" in described.change(wrong.format("forbid", "aes"), "<clock", 1)
    described.change("", "<clock")
    assert "<cpu " not in virsh("dumpxml", "vm1")


@pytest.mark.long
def test_bytes_in_and_out(world: World, tiny_iso: Path, python: LibvirtPython) -> None:
    """What a program inside writes is read here, and the other way round."""
    guest = Guest(world, tiny_iso)
    guest.prlctl("set", "vm1", "--channels", NAME)
    guest.start()
    find = f"cd /sys/class/virtio-ports; for p in *; do grep -q {NAME} $p/name && echo $p; done"
    port = guest.inside(find).strip()
    python("stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK); got = []")
    python(f"dom('vm1').openChannel({NAME!r}, stream, 0)")
    # A port can be opened by one program at a time.
    echo = 'while read -r line <&3; do echo "got $line" >&3; done'
    guest.inside(f"(exec 3<>/dev/{port}; {echo}) >/dev/null 2>&1 </dev/null &")
    received = "(lambda new: new if isinstance(new, bytes) else b'')(stream.recv(100))"
    for word in ("one", "two"):
        python(f"stream.send(b'{word}\\n')")
        python.until(f"got.append({received}) or b''.join(got).endswith(b'got {word}\\n')")
    python("stream.abort()")
    guest.prlctl("stop", "vm1", "--kill")
