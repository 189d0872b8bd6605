"""ploop and prl_disk_tool as programs, against a real vzd: calls, output, exit codes."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from realnode import World

pytestmark = pytest.mark.requires("root", "loop")
ONE = "{11111111-1111-4111-8111-111111111111}"
TOP = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
NONE = "{00000000-0000-0000-0000-000000000000}"


@pytest.fixture
def world(short_root: Path) -> Iterator[World]:
    short_root.chmod(0o755)
    made = World(short_root)
    made.run("prlctl", "list")
    yield made
    made.end()


def test_the_calls_of_nova(world: World, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    raw = disk / "root.hds"
    with raw.open("wb") as file:
        file.truncate(200 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", raw], check=True)
    world.run("ploop", "restore-descriptor", "-f", "raw", f"{disk}", f"{raw}")
    resize = ("resize", "--size", "1024M", "--resize_partition", "--hdd", f"{disk}")
    world.run("prl_disk_tool", *resize)
    world.run("prl_disk_tool", *resize)
    assert world.run("ploop", "info", "-s", f"{disk}/DiskDescriptor.xml") == (
        "size:\t\t2097152\nblocksize:\t2048\nfmt_version:\t2\n"
    )
    world.run("ploop", "restore-descriptor", "-f", "expanded", f"{disk}", f"{raw}")
    ephemeral = tmp_path / "disk.eph0"
    ephemeral.mkdir()
    world.run("ploop", "init", "-s", "1G", "-f", "expanded", "-t", "ext4", f"{ephemeral}/root.hds")
    table = world.run("ploop", "info", f"{ephemeral}").splitlines()
    assert table[0] == "   resource           Size           Used"
    assert [len(line) for line in table] == [41, 41, 41]
    assert table[1].split()[:2] == ["1k-blocks", "1048576"]


def test_mounting_snapshots_and_lists(world: World, tmp_path: Path) -> None:
    xml, target = tmp_path / "DiskDescriptor.xml", tmp_path / "mnt"
    target.mkdir()
    world.run("ploop", "init", "-s", "131072K", f"{tmp_path}/root.hds")
    said = world.run("ploop", "mount", "-m", f"{target}", f"{xml}")
    device = said.split("dev=")[1].split()[0]
    assert said == (
        f"Adding delta dev={device} img={tmp_path}/root.hds (rw)\nMounting {device} at {target}\n"
    )
    assert f"{device}\t{tmp_path}/root.hds {target}\n" in world.run("ploop", "list")
    assert f"device:\t\t{device}\n" in world.run("ploop", "info", "-d", f"{xml}")
    (target / "file").write_text("old")
    world.run("ploop", "snapshot", "-u", ONE, f"{xml}")
    assert world.run("ploop", "snapshot-list", f"{xml}") == (
        f"{'PARENT_UUID':<38} C {'UUID':<38} FNAME\n"
        f"{NONE}   {ONE} root.hds.{ONE}\n"
        f"{ONE} * {TOP} root.hds\n"
    )
    assert world.run("ploop", "snapshot-list", "-H", "-s", "-o", "uuid,current", f"{xml}") == (
        f"{ONE} *\n{TOP} \n"
    )
    (target / "file").write_text("new")
    world.run("ploop", "snapshot-switch", "-u", ONE, f"{xml}", code=37)
    world.run("ploop", "check", f"{xml}", code=17)
    world.run("ploop", "umount", "-m", f"{target}")
    world.run("ploop", "snapshot-switch", "-u", ONE, f"{xml}")
    world.run("ploop", "snapshot-mount", "-u", ONE, "-m", f"{target}", f"{xml}")
    assert (target / "file").read_text() == "old"
    world.run("ploop", "umount", "-m", f"{target}")
    world.run("ploop", "snapshot-merge", f"{xml}")
    assert world.run("ploop", "snapshot-list", "-H", "-o", "UUID", f"{xml}") == f"{TOP}\n"
    world.run("prl_disk_tool", "compact", "--hdd", f"{tmp_path}")
    world.run("ploop", "balloon", "discard", f"{xml}")
    for form in ("expanded", "raw", "preallocated"):
        assert "content sha256 " in world.run("ploop", "convert", "-f", form, f"{xml}")
    world.run("ploop", "copy", "-s", f"{xml}", "-d", f"{tmp_path}/copy.hds", "-f", "expanded")
    assert "no errors" in world.run("ploop", "check", f"{tmp_path}/copy.hds")
    with (tmp_path / "copy.hds").open("r+b") as file:
        file.seek(64)
        file.write(b"\xff\xff\xff\x0f")
    assert "behind the end" in world.run("ploop", "check", f"{tmp_path}/copy.hds", code=11)


def test_grow_what_is_named_in_three_ways(world: World, tmp_path: Path) -> None:
    """A disk, the device on which it is, an image alone."""
    (disk := tmp_path / "disk").mkdir()
    world.run("ploop", "init", "-s", "64M", "-t", "none", f"{disk}/root.hds")
    world.run("ploop", "copy", "-s", f"{disk}", "-d", f"{tmp_path}/alone")
    world.run("ploop", "grow", "-s", "65M", f"{disk}/DiskDescriptor.xml")
    said = world.run("ploop", "mount", f"{disk}")
    world.run("ploop", "grow", "-s", "66M", "-d", said.split("dev=")[1].split()[0])
    world.run("ploop", "umount", f"{disk}")
    assert "size:\t\t135168\n" in world.run("ploop", "info", "-s", f"{disk}")
    assert "ploop grow" in world.run("ploop", "grow", "-s", "67M", f"{disk}/root.hds", code=38)
    world.run("ploop", "grow", "-s", "70M", f"{tmp_path}/alone")
    assert "less" in world.run("ploop", "grow", "-s", "64M", f"{tmp_path}/alone", code=11)
    world.run("ploop", "restore-descriptor", f"{tmp_path}", f"{tmp_path}/alone")
    assert "size:\t\t143360\n" in world.run("ploop", "info", "-s", f"{tmp_path}")
    (raw := tmp_path / "raw").touch()
    world.run("ploop", "grow", "-s", "1M", "-f", "raw", f"{raw}")
    assert raw.stat().st_size == 1 << 20
    world.run("ploop", "grow", "-s", "2M", f"{raw}", code=11)


def test_copy_through_a_pipe_and_a_socket(world: World, tmp_path: Path) -> None:
    """A mounted disk, as it is at that moment; the copy is a disk by itself."""
    xml, target = tmp_path / "disk/DiskDescriptor.xml", tmp_path / "mnt"
    xml.parent.mkdir()
    target.mkdir()
    world.run("ploop", "init", "-s", "64M", f"{xml.parent}/root.hds")
    world.run("ploop", "mount", "-m", f"{target}", f"{xml}")
    (target / "file").write_bytes(os.urandom(3 << 20))
    for through in ("pipe", "socket"):
        place = tmp_path / through
        place.mkdir()
        if through == "pipe":
            out, into = os.pipe()
            ends = (into, out)
        else:
            ends = tuple(each.detach() for each in socket.socketpair())  # type: ignore[assignment]
        with (
            started(world, ends[0], "copy", "-s", f"{xml}", "-o", f"{ends[0]}") as sender,
            started(world, ends[1], "copy", "-d", f"{place}/root.hds", "-i", f"{ends[1]}") as taker,
        ):
            for end in ends:
                os.close(end)
            assert (sender.wait(200), taker.wait(200)) == (0, 0)
        world.run("ploop", "restore-descriptor", f"{place}", f"{place}/root.hds")
        copied = tmp_path / f"{through}.mnt"
        copied.mkdir()
        world.run("ploop", "mount", "-m", f"{copied}", f"{place}/DiskDescriptor.xml")
        assert (copied / "file").read_bytes() == (target / "file").read_bytes()
        world.run("ploop", "umount", "-m", f"{copied}")
        world.run("ploop", "check", f"{place}/DiskDescriptor.xml")
    world.run("ploop", "umount", "-m", f"{target}")
    assert sorted(path.name for path in xml.parent.iterdir() if "root" in path.name) == ["root.hds"]
    with (tmp_path / "rubbish").open("w+b") as rubbish:
        rubbish.write(b"x" * 100)
        rubbish.seek(0)
        with started(world, rubbish.fileno(), "copy", "-d", f"{tmp_path}/new", "-i",
                     f"{rubbish.fileno()}") as taker:  # fmt: skip
            assert taker.wait(200) != 0
    assert not (tmp_path / "new").exists()
    assert "is not open" in world.run("ploop", "copy", "-s", f"{xml}", "-o", "77", code=38)


def started(world: World, fd: int, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(world.argv("ploop", *words), env=world.env, pass_fds=[fd])


def test_the_disk_tool_tells_and_converts(world: World, tmp_path: Path) -> None:
    world.run("ploop", "init", "-s", "256M", "-B", "1024", "-n", f"{tmp_path}/root.hds")
    told = world.run("prl_disk_tool", "resize", "--info", "--hdd", f"{tmp_path}/root.hds")
    least = int(told.splitlines()[2].split()[1].rstrip("M"))
    tabs = "\t" * 6
    assert told == (
        f"Disk information:\n\tSize:{tabs}256M\n\tMinimum:{tabs[1:]}{least}M\n"
        "\tMinimum without resizing the last partition:\t256M\n"
    )
    assert 4 < least < 100
    world.run("prl_disk_tool", "resize", "-n", "--size", f"{least + 20}M", "--hdd", f"{tmp_path}")
    assert "\t256M" in world.run("prl_disk_tool", "resize", "-i", "--hdd", f"{tmp_path}")
    world.run("prl_disk_tool", "resize", "--size", f"{least + 20 << 10}K", "--hdd", f"{tmp_path}")
    told = world.run("prl_disk_tool", "resize", "-i", "--units", "K", "--hdd", f"{tmp_path}")
    assert f"Size:{tabs}{least + 20 << 10}K\n" in told
    world.run("prl_disk_tool", "resize", "-i", "--units", "B", "--hdd", f"{tmp_path}", code=255)

    def blocks() -> list[int]:
        lines = world.run("prl_disk_tool", "compact", "--info", "--hdd", f"{tmp_path}").splitlines()
        assert [line[:26] for line in lines] == [
            "        Block size:       ", "        Total blocks:     ",
            "        Allocated blocks: ", "        Used blocks:      ",
        ]  # fmt: skip
        return [int(line[26:]) for line in lines]

    size, total, allocated, used = blocks()
    assert (size, total) == (2048, least + 20)
    assert used < total
    assert allocated < total
    world.run("prl_disk_tool", "convert", "--plain", "--hdd", f"{tmp_path}")
    assert blocks()[2] == total
    world.run("prl_disk_tool", "convert", "--expanding", "--merge", "--hdd", f"{tmp_path}")
    assert blocks()[2] < total


def test_exit_codes(world: World, tmp_path: Path) -> None:
    xml = tmp_path / "DiskDescriptor.xml"
    world.run("ploop", "init", "-s", "32M", "-t", "none", f"{tmp_path}/root.hds")
    for code, words in (
        (38, ()),
        (38, ("frobnicate",)),
        (38, ("init", f"{tmp_path}/x")),
        (38, ("init", "-s", "many", f"{tmp_path}/x")),
        (38, ("init", "-s", "1G", "-t", "ntfs", f"{tmp_path}/x")),
        (1, ("init", "-s", "1G", f"{tmp_path}/root.hds")),
        (4, ("init", "-s", "1G", f"{tmp_path}/none/root.hds")),
        (4, ("info", f"{tmp_path}/none/DiskDescriptor.xml")),
        (38, ("snapshot-list", "-o", "nosuch", f"{xml}")),
        (38, ("snapshot-delete", f"{xml}")),
        (38, ("snapshot-delete", "-u", "one", f"{xml}")),
        (43, ("snapshot-delete", "-u", ONE, f"{xml}")),
        (40, ("umount", f"{xml}")),
        (38, ("umount",)),
        (11, ("mount", "-m", f"{tmp_path}/m", f"{xml}")),
        (11, ("check", "/etc/passwd")),
        (11, ("check", "/dev/null")),
        (38, ("convert", f"{xml}")),
        (13, ("encrypt", "-k", "k", f"{xml}")),
        (13, ("balloon", "change", f"{xml}")),
        (38, ("replace", "-i", "/etc/passwd", "-u", TOP, f"{xml}")),
    ):
        world.run("ploop", *words, code=code)
    assert not (tmp_path / "x").exists()
    assert "Usage: ploop init" in world.run("ploop", "init", "--help")
    for words in (("resize", "--hdd", f"{tmp_path}"), ("nosuch", "--hdd", "x"), ("resize",)):
        world.run("prl_disk_tool", *words, code=255)
    world.run("prl_disk_tool", "convert", "--hdd", f"{tmp_path}", code=255)
    world.run("prl_disk_tool", "convert", "--plain", "--split", "--hdd", f"{tmp_path}", code=13)
    world.run("prl_disk_tool", "resize", "--size", "8M", "--hdd", f"{tmp_path}", code=255)
    assert os.listdir(tmp_path).count("root.hds") == 1
