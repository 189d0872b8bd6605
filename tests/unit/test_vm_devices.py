"""Devices of the node for virtual machines, read of a sysfs that the test has made."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvz.errors import BadValue, NotFound, Unsupported
from pyvz.linux import deviceuse, usb, vfio
from pyvz.operations import machineusb


def test_usb_devices_that_are_there(tmp_path: Path) -> None:
    for name, number, id_, product in (
        ("usb1", 1, "1d6b:0002", "hub"), ("1-1", 4, "046d:c52b", "a \x1bmouse"),
        ("1-2", 5, "0951:1666", "stick"), ("1-3", 6, "0951:1666", "stick"),
        ("1-1:1.0", 0, "x:y", ""),
    ):  # fmt: skip
        files = {"busnum": "1", "devnum": str(number), "product": product}
        files |= {"idVendor": id_.split(":")[0], "idProduct": id_.split(":")[1]}
        files["bDeviceClass"] = "09" if product == "hub" else "00"
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text + "\n")
    there = usb.devices(tmp_path)
    assert [each.place for each in there] == ["1.4", "1.5", "1.6"]
    mouse = machineusb.find("046d:c52b", there)
    assert (str(mouse.path), mouse.label) == ("/dev/bus/usb/001/004", "a ?mouse")
    assert machineusb.find("1.6", there).id == "0951:1666"
    with pytest.raises(BadValue) as twice:
        machineusb.find("0951:1666", there)
    assert twice.value.hint == "Say which: 1.5 or 1.6"
    with pytest.raises(NotFound, match=r"no USB device 1\.7"):
        machineusb.find("1.7", there)
    assert usb.devices(tmp_path / "none") == []


def test_who_drives_a_usb_device(tmp_path: Path) -> None:
    devices = tmp_path / "devices"
    (tmp_path / "drivers/usbfs").mkdir(parents=True)
    for part in ("1-1:1.0", "1-1:1.1", "1-10:1.0"):
        (devices / part).mkdir(parents=True)
    (devices / "1-1:1.0/driver").symlink_to(tmp_path / "drivers/usbfs")
    mouse = usb.UsbDevice(1, 4, "046d:c52b", "", devices / "1-1")
    assert usb.drivers(mouse) == {"1-1:1.0": "usbfs", "1-1:1.1": ""}
    usb.give_back(mouse)
    assert (tmp_path / "drivers_probe").read_text() == "1-1:1.1"


def test_what_the_node_uses_is_known(tmp_path: Path) -> None:
    card, other = tmp_path / "devices/card", tmp_path / "devices/other"
    for place, flags in ((card / "net/eth0", "0x1003"), (other / "net/eth1", "0x1002")):
        place.mkdir(parents=True)
        (place / "flags").write_text(flags + "\n")
        (tmp_path / "class/net").mkdir(parents=True, exist_ok=True)
        (tmp_path / "class/net" / place.name).symlink_to(place)
    assert deviceuse.uses(card, tmp_path, tmp_path) == ["eth0 is up"]
    assert deviceuse.uses(other, tmp_path, tmp_path) == []
    (other / "net/eth1/master").mkdir()
    assert deviceuse.uses(other, tmp_path, tmp_path) == ["eth1 is up"]


def test_iommu_groups(tmp_path: Path) -> None:
    devices = tmp_path / "devices"
    members = tmp_path / "iommu_groups/7/devices"
    for address, class_ in (("0000:00:1c.0", "0x060400"), ("0000:03:00.0", "0x020000"),
                            ("0000:03:00.1", "0x040300")):  # fmt: skip
        (devices / address).mkdir(parents=True)
        (devices / address / "class").write_text(class_ + "\n")
        (devices / address / "iommu_group").symlink_to(members.parent)
        (members / address).mkdir(parents=True)
    assert vfio.group("0000:03:00.0", tmp_path) == "7"
    assert vfio.members("0000:03:00.1", tmp_path) == ["0000:03:00.0", "0000:03:00.1"]
    assert vfio.is_bridge("0000:00:1c.0", tmp_path)
    (devices / "0000:03:00.0/iommu_group").unlink()
    with pytest.raises(Unsupported, match="no IOMMU"):
        vfio.group("0000:03:00.0", tmp_path)
    with pytest.raises(NotFound):
        vfio.group("0000:09:00.0", tmp_path)
