"""Whole disks of partitions, on a tree that looks like sysfs."""

from __future__ import annotations

from pyvz.linux import blockdevice
from pyvz.linux.mount import parse_mountinfo


def test_partition_becomes_its_disk(tmp_path, monkeypatch):
    partition = tmp_path / "devices/sda/sda2"
    partition.mkdir(parents=True)
    (partition / "partition").write_text("2\n")
    (partition / "dev").write_text("8:2\n")
    (tmp_path / "devices/sda/dev").write_text("8:0\n")
    block = tmp_path / "block"
    block.mkdir()
    (block / "8:2").symlink_to("../devices/sda/sda2")
    (block / "8:0").symlink_to("../devices/sda")
    monkeypatch.setattr(blockdevice, "SYS_BLOCK", str(block))
    assert blockdevice.whole_disk((8, 2)) == (8, 0)
    assert blockdevice.whole_disk((8, 0)) == (8, 0)
    assert blockdevice.whole_disk((253, 9)) == (253, 9)


def test_mountinfo_line_with_everything():
    text = (
        "36 35 98:0 /mnt1 /mnt2\\040x rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=ro\n"
        "22 1 0:21 / /proc rw - proc proc rw\n"
    )
    first, second = parse_mountinfo(text)
    assert first.target == "/mnt2 x"
    assert first.root == "/mnt1"
    assert first.device == (98, 0)
    assert first.options == ("rw", "noatime")
    assert first.propagation == ("shared:1", "master:2")
    assert first.shared
    assert first.super_options == ("rw", "errors=ro")
    assert (second.fstype, second.shared) == ("proc", False)
