"""What an OVA or OVF from elsewhere says, and what is refused of it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from pyvz.errors import StorageError, Unsupported
from pyvz.model.task import NoProgress
from pyvz.vm import ova, ovf
from pyvz.vm.ovf import Appliance, Disk

OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:vmw="http://www.vmware.com/schema/ovf"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
 <References><File ovf:id="file1" ovf:href="disk.vmdk"/></References>
 <DiskSection><Disk ovf:diskId="d1" ovf:fileRef="file1" ovf:capacity="16"/></DiskSection>
 <VirtualSystem ovf:id="appliance"><Name>web</Name>
  <VirtualHardwareSection>
   <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
    <rasd:VirtualQuantity>3</rasd:VirtualQuantity></Item>
   <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
    <rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType>
    <rasd:VirtualQuantity>768</rasd:VirtualQuantity></Item>
   <Item><rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceType>20</rasd:ResourceType></Item>
   <Item><rasd:InstanceID>6</rasd:InstanceID><rasd:ResourceType>10</rasd:ResourceType></Item>
   <Item><rasd:HostResource>ovf:/disk/d1</rasd:HostResource><rasd:Parent>5</rasd:Parent>
    <rasd:InstanceID>7</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType></Item>
   <vmw:Config vmw:key="firmware" vmw:value="efi"/>
  </VirtualHardwareSection>
 </VirtualSystem>
</Envelope>
"""


def test_a_description() -> None:
    assert ovf.parse(OVF) == Appliance("web", 3, 768, True, (Disk("disk.vmdk", "sata"),), 1)
    gigabytes = OVF.replace("byte * 2^20", "GigaBytes").replace(">768<", ">2<")
    assert ovf.parse(gigabytes).memory == 2048


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no xml", "no OVF"),
        ("<a/>", "no virtual machine"),
        ('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/shadow">]>' + OVF[21:], "no OVF"),
        (OVF.replace("ovf:/disk/d1", "ovf:/disk/d2"), "missing"),
        (OVF.replace(">768<", ">-1<"), "no number"),
    ],
)
def test_no_description(text: str, words: str) -> None:
    with pytest.raises(StorageError, match=words):
        ovf.parse(text)


def test_compressed_disks_are_refused() -> None:
    with pytest.raises(Unsupported, match="compressed"):
        ovf.parse(OVF.replace("<File ", '<File ovf:compression="gzip" '))


def archive(
    path: Path, *members: tuple[str, bytes, bytes], form: int = tarfile.USTAR_FORMAT
) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content)
            info.linkname = "/etc/shadow" if kind == tarfile.SYMTYPE else ""
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members(tmp_path: Path, form: int) -> None:
    files = [("a.ovf", tarfile.REGTYPE, b"text"), ("disk.vmdk", tarfile.REGTYPE, b"x" * 1000)]
    found = ova.members(archive(tmp_path / "x.ova", *files, form=form))
    assert {name: each.size for name, each in found.items()} == {"a.ovf": 4, "disk.vmdk": 1000}
    assert found["a.ovf"].text() == "text"


def test_a_long_pax_name_is_read(tmp_path: Path) -> None:
    name = "n" * 150 + ".ovf"
    path = archive(tmp_path / "x.ova", (name, tarfile.REGTYPE, b"text"), form=tarfile.PAX_FORMAT)
    assert list(ova.members(path)) == [name]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("../a.ovf", tarfile.REGTYPE, "leads elsewhere"),
        ("/a.ovf", tarfile.REGTYPE, "leads elsewhere"),
        ("a/b.ovf", tarfile.REGTYPE, "leads elsewhere"),
        ("a.ovf", tarfile.SYMTYPE, "plain files"),
        ("a.ovf", tarfile.CHRTYPE, "plain files"),
    ],
)
def test_hostile_members(tmp_path: Path, name: str, kind: bytes, words: str) -> None:
    with pytest.raises(StorageError, match=words):
        ova.members(archive(tmp_path / "x.ova", (name, kind, b"")))


def test_no_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.ova"
    for content in (b"", b"\0" * 2048, b"x" * 4096):
        path.write_bytes(content)
        with pytest.raises(StorageError, match="no archive"):
            ova.members(path)
    whole = archive(path, ("a.ovf", tarfile.REGTYPE, b"x" * 4096)).read_bytes()
    path.write_bytes(whole[:2048])
    with pytest.raises(StorageError, match="cut off"):
        ova.members(path)
    many = [(f"f{number}", tarfile.REGTYPE, b"") for number in range(ova.MAX_MEMBERS + 1)]
    with pytest.raises(StorageError, match="more than"):
        ova.members(archive(path, *many))


def test_a_manifest(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"text").hexdigest()
    files = [("a.ovf", b"text"), ("a.mf", f"SHA256(a.ovf)= {digest}\n".encode())]
    members = [(name, tarfile.REGTYPE, content) for name, content in files]
    found = ova.members(archive(tmp_path / "x.ova", *members))
    ova.verify(found, found["a.mf"], NoProgress())
    members[0] = ("a.ovf", tarfile.REGTYPE, b"test")
    found = ova.members(archive(tmp_path / "x.ova", *members))
    with pytest.raises(StorageError, match="damaged"):
        ova.verify(found, found["a.mf"], NoProgress())
