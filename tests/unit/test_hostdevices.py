"""The node's devices, read of a sysfs that the test has made."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvz.gateway import hostdevicexml
from pyvz.linux import hostdevices
from pyvz.linux.hostdevices import HostDevice
from pyvz.operations import nodehardware


@pytest.fixture
def devices(tmp_path: Path) -> list[HostDevice]:
    """A controller with a disk, its partition, a card, a USB stick, and what is no device."""
    real = tmp_path / "devices"
    made = {
        "pci0/0000:00:02.0": {"class": "0x010000", "vendor": "0x1af4", "device": "0x1042"},
        "pci0/0000:00:02.0/virtio1/block/vda": {"size": "8", "queue/logical_block_size": "512"},
        "pci0/0000:00:02.0/virtio1/block/vda/vda1": {"partition": "1", "size": "4"},
        "pci0/0000:00:03.0/net/eth0": {"address": "52:54:00:00:00:01", "operstate": "up"},
        "pci0/0000:00:03.0": {"vendor": "0x8086", "device": "0x100e", "numa_node": "-1"},
        "usb1/1-2": {"busnum": "1", "devnum": "3", "idVendor": "046d", "product": "St\x1bick"}
        | {"idProduct": "c52b"},
        "usb1/1-2/1-2:1.0": {},
        "virtual/block/loop0": {"size": "8"},
        "virtual/net/veth1": {"address": "02:00:00:00:00:01"},
        "virtual/net/lo": {"address": "00:00:00:00:00:00", "operstate": "unknown"},
    }
    for place, files in made.items():
        for name, text in files.items():
            (real / place / name).parent.mkdir(parents=True, exist_ok=True)
            (real / place / name).write_text(f"{text}\n")
        (real / place).mkdir(parents=True, exist_ok=True)
        name = Path(place).name
        kind = next((part for part in ("block", "net") if part in Path(place).parts), "")
        bus = "usb" if place.startswith("usb") else "pci"
        listed = tmp_path / (f"class/{kind}" if kind else f"bus/{bus}/devices")
        listed.mkdir(parents=True, exist_ok=True)
        (listed / name).symlink_to(real / place)
        if kind and not place.startswith("virtual"):
            (real / place / "device").mkdir(exist_ok=True)
    return hostdevices.every(tmp_path)


def test_what_is_there(devices: list[HostDevice]) -> None:
    assert [hostdevicexml.name_of(each) for each in devices] == [
        *("pci_0000_00_02_0", "pci_0000_00_03_0", "usb_1_2", "net_eth0_52_54_00_00_00_01"),
        *("net_lo_00_00_00_00_00_00", "block_vda"),
    ]
    parents = {each.name: hostdevicexml.parent_of(each, devices) for each in devices}
    assert parents["vda"] == "pci_0000_00_02_0"
    assert parents["eth0"] == "pci_0000_00_03_0"
    assert parents["lo"] == parents["1-2"] == "computer"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pci_0000_00_02_0", ("<slot>2</slot>", '<vendor id="0x1af4" />')),
        ("usb_1_2", ('<vendor id="0x046d" />', ">Stick</product>")),
        ("net_eth0_52_54_00_00_00_01", ("<interface>eth0</interface>", '<link state="up" />')),
        ("block_vda", ("<size>4096</size>", "<num_blocks>8</num_blocks>")),
    ],
)
def test_descriptions(devices: list[HostDevice], name: str, words: tuple[str, ...]) -> None:
    found = hostdevicexml.find(devices, name)
    assert found is not None
    text = hostdevicexml.described(found, devices)
    for word in words:
        assert word in text


def test_what_info_lists(devices: list[HostDevice], tmp_path: Path) -> None:
    assert devices
    assert nodehardware.rows(tmp_path) == {
        "/dev/vda": {"name": "0 MiB", "type": "hdd"},
        "eth0": {"name": "52:54:00:00:00:01", "type": "net"},
        "046d:c52b": {"name": "St?ick", "type": "usb"},
        "0000:00:02.0": {"name": "storage 1af4:1042", "type": "pci"},
        "0000:00:03.0": {"name": "other 8086:100e", "type": "pci"},
    }


def test_nothing_there(tmp_path: Path) -> None:
    assert hostdevices.every(tmp_path) == []
    assert hostdevices.interface("eth9", tmp_path).facts == {}
