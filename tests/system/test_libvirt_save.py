"""Memory in files by virsh: save, restore, dump."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from networld import wait_for
from places import umount
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("root", "loop", "program:virsh", "criu")

_STEP = "i=$((i+1)); echo $i >/tmp/new; mv /tmp/new /tmp/count"
COUNT = f"setsid sh -c 'i=0; while :; do {_STEP}; done' >/dev/null 2>&1 &"


def test_a_container_in_a_file(world: World, tmp_path: Path) -> None:
    """Its programs go on where they were; what is refused changes nothing."""
    world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1")
    virsh, file = Virsh(world), tmp_path / "ct1.state"
    assert "not running" in virsh("save", "ct1", os.fspath(file), code=1)
    virsh("start", "ct1")
    world.run("prlctl", "exec", "ct1", COUNT)
    wait_for(lambda: _count(world) > 100)
    assert "is a container" in virsh("dump", "ct1", os.fspath(file), code=1)
    assert "no directory" in virsh("save", "ct1", os.fspath(tmp_path / "x" / "y"), code=1)
    assert "running" in virsh("domstate", "ct1")
    file.write_text("of an earlier time")
    before = _count(world)
    virsh("save", "ct1", os.fspath(file))
    assert virsh("domstate", "ct1") == "shut off"
    assert "no managed save" in virsh("managedsave-dumpxml", "ct1", code=1).lower()
    assert file.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.new"))
    assert "<name>ct1</name>" in virsh("save-image-dumpxml", os.fspath(file))
    _refused(virsh, file, tmp_path)
    virsh("restore", os.fspath(file))
    after = _count(world)
    assert after >= before
    wait_for(lambda: _count(world) > after)
    assert "is running" in virsh("restore", os.fspath(file), code=1)
    virsh("save", "ct1", os.fspath(file), "--paused")
    virsh("restore", os.fspath(file))
    assert virsh("domstate", "ct1") == "paused"


def _count(world: World) -> int:
    """How far the program inside has counted."""
    seen = world.run("prlctl", "exec", "ct1", "cat /tmp/count 2>/dev/null || echo 0").strip()
    return int(seen or 0)


def _refused(virsh: Virsh, file: Path, work: Path) -> None:
    """What is no saved state, or could be somebody else's."""
    other, restore = work / "other", ("restore", os.fspath(work / "other"))
    assert "no file" in virsh(*restore, code=1)
    data = file.read_bytes()
    for torn in (b"", b"nothing", data[:700], data[: len(data) // 2], b"x" * len(data)):
        other.write_bytes(torn)
        assert "no saved state" in virsh(*restore, code=1), torn[:20]
    for name in ("dump/../x", "/dump/x", "dump/a/b/c", "x", "dump/Dump/../../../x"):
        _forge(file, other, name)
        assert "it has a part" in virsh(*restore, code=1), name
    other.write_bytes(data)
    other.chmod(0o666)
    assert "others than root" in virsh(*restore, code=1)
    other.chmod(0o600)
    os.chown(other, 1000, 1000)
    assert "others than root" in virsh(*restore, code=1)
    assert virsh("domstate", "ct1") == "shut off"


@pytest.mark.requires("program:qemu-system-x86_64")
def test_a_machine_in_a_file(world: World, tmp_path: Path) -> None:
    """The same of a machine; a core of its memory; its managed state is described."""
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
    world.run("prlctl", "set", "vm1", "--memsize", "128")
    virsh, file, core = Virsh(world), tmp_path / "vm1.state", tmp_path / "core"
    virsh("start", "vm1")
    assert "memory-only" in virsh("dump", "vm1", os.fspath(core), code=1)
    virsh("dump", "vm1", os.fspath(core), "--memory-only")
    assert core.read_bytes()[:4] == b"\x7fELF"
    assert core.stat().st_size > 128 << 20
    assert virsh("domstate", "vm1") == "running"
    zipped = ("dump", "vm1", os.fspath(core), "--memory-only", "--format", "kdump-zlib")
    virsh(*zipped)
    assert core.read_bytes()[:8] in {b"KDUMP   ", b"makedump"}
    assert "vmcoreinfo" in virsh(*zipped[:-1], "win-dmp", code=1)  # of Windows, which it is not
    virsh("suspend", "vm1")
    virsh("save", "vm1", os.fspath(file))
    assert virsh("domstate", "vm1") == "shut off"
    assert not list((world.root / "vz/vmprivate").glob("*/dump/*"))
    virsh("restore", os.fspath(file))
    assert virsh("domstate", "vm1") == "paused"
    virsh("resume", "vm1")
    virsh("dump", "vm1", os.fspath(core), "--memory-only", "--crash")
    assert virsh("domstate", "vm1") == "shut off"
    virsh("restore", os.fspath(file), "--running")
    assert virsh("domstate", "vm1") == "running"
    virsh("managedsave", "vm1")
    assert "<name>vm1</name>" in virsh("managedsave-dumpxml", "vm1")
    assert "is suspended" in virsh("restore", os.fspath(file), code=1)
    small = tmp_path / "small"
    small.mkdir()
    virsh("start", "vm1")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "small", small], check=True)
    try:
        assert re.search("space|write", virsh("save", "vm1", os.fspath(small / "x"), code=1))
        wait_for(lambda: not list(small.iterdir()))
        assert virsh("domstate", "vm1") == "running"
        assert virsh("dump", "vm1", os.fspath(small / "x"), "--memory-only", code=1)
        wait_for(lambda: not list(small.iterdir()))
    finally:
        umount(small)
    virsh("destroy", "vm1")


def _forge(file: Path, target: Path, name: str) -> None:
    """Make a file that begins as FILE does, and has a part NAME."""
    with tarfile.open(file) as archive, tarfile.open(target, "w") as made:
        head = archive.getmembers()[0]
        made.addfile(head, archive.extractfile(head))
        made.addfile(tarfile.TarInfo(name))
