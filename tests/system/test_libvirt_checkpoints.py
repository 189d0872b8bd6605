"""Checkpoints and backups of a virtual machine by virsh."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_libvirt import Virsh
from test_libvirt_schemas import validate
from test_machine_mount import disk

from images import busybox_root, busybox_tar
from machineguest import Guest
from networld import wait_for
from places import umount
from realnode import World, world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "tiny_iso", "world"]
pytestmark = pytest.mark.requires(
    "root", "loop", "program:virsh", "program:qemu-system-x86_64",
    "program:qemu-storage-daemon", "program:mke2fs",
)  # fmt: skip

BACKUP = """<domainbackup mode='push'>{}<disks><disk name='{}' type='file'>
<target file='{}'/><driver type='{}'/></disk></disks></domainbackup>"""
CHECKPOINT = "<domaincheckpoint><name>{}</name></domaincheckpoint>"


class Machine:
    """vm1 with a small disk, seen by virsh."""

    def __init__(self, world: World, work: Path) -> None:
        world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
        world.run("prlctl", "set", "vm1", "--memsize", "128")
        self.world, self.work, self.virsh = world, work, Virsh(world)
        home = next((world.root / "vz/vmprivate").iterdir())
        self.home, self.image = home, home / "harddisk.hdd"
        self.root = world.root / "vz/root" / home.name
        disk(self.image, work)

    def write(self, name: str) -> None:
        """Write a file to its disk, from the node, as it does not run."""
        self.world.run("prlctl", "mount", "vm1", "-o", "rw")
        (self.root / name).write_bytes(os.urandom(300_000))
        self.world.run("prlctl", "umount", "vm1")

    def bitmaps(self) -> set[str]:
        """The names of the bitmaps in its image, while it does not run."""
        told = subprocess.run(
            ["qemu-img", "info", self.image], capture_output=True, text=True, check=True
        ).stdout
        return set(re.findall(r"^ +name: (\S+)", told, re.MULTILINE))

    def backup(self, target: Path, since: str = "", mark: str = "", *options: str) -> None:
        """Back sda up into TARGET, to the end; MARK: a checkpoint begins."""
        plan, checkpoint = self.work / "backup.xml", self.work / "checkpoint.xml"
        part = f"<incremental>{since}</incremental>" if since else ""
        plan.write_text(BACKUP.format(part, "sda", target, "qcow2"))
        words = ["backup-begin", "vm1", "--backupxml", os.fspath(plan), *options]
        if mark:
            checkpoint.write_text(CHECKPOINT.format(mark))
            words += ["--checkpointxml", os.fspath(checkpoint)]
        self.virsh(*words)
        wait_for(lambda: re.search("None", self.virsh("domjobinfo", "vm1")), 120)
        done = self.virsh("domjobinfo", "vm1", "--completed")
        assert re.search(r"Operation: +Backup", done), done
        assert re.search(r"Job type: +Completed", done), done


@pytest.fixture
def machine(world: World, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(world, tmp_path)
    yield made
    if made.virsh("list", "--name"):
        made.virsh("destroy", "vm1")
    world.run("prlctl", "delete", "vm1", "--force", "--timeout", "60")


def _same(one: Path, other: Path) -> bool:
    words = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", one, other]
    return subprocess.run(words, check=False).returncode == 0


def test_what_changed_is_backed_up(machine: Machine, tmp_path: Path) -> None:
    """Whole, then what changed since a checkpoint; both together are the disk."""
    virsh = machine.virsh
    full, part = tmp_path / "full.qcow2", tmp_path / "part.qcow2"
    machine.world.run("prlctl", "start", "vm1")
    machine.backup(full, "", "one")
    assert virsh("checkpoint-list", "vm1", "--name") == "one"
    machine.world.run("prlctl", "stop", "vm1", "--kill")
    assert machine.bitmaps() == {"one"}
    assert _same(full, machine.image)
    machine.write("new")
    machine.world.run("prlctl", "start", "vm1")
    told = virsh("checkpoint-dumpxml", "vm1", "one", "--size")
    written = re.search(r'bitmap="one" size="(\d+)"', told)
    assert written, told
    assert 300_000 <= int(written[1]) < 16 << 20
    machine.backup(part, "one", "two")
    assert part.stat().st_size < full.stat().st_size / 2
    assert virsh("checkpoint-parent", "vm1", "two") == "one"
    machine.backup(part, "two", "", "--reuse-external")
    machine.world.run("prlctl", "stop", "vm1", "--kill")
    assert not _same(full, machine.image)
    rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", full, part]
    subprocess.run(rebase, check=True)
    assert _same(part, machine.image)


def test_checkpoints_come_and_go(machine: Machine, tmp_path: Path) -> None:
    """Of one that runs and of one that does not; what virsh shows of them."""
    virsh = machine.virsh
    virsh("checkpoint-create-as", "vm1", "one", "the first")
    assert machine.bitmaps() == {"one"}
    machine.world.run("prlctl", "start", "vm1")
    for name in ("two", "three", "four"):
        virsh("checkpoint-create-as", "vm1", name, "--diskspec", "sda,checkpoint=bitmap")
    in_order = ("--topological", "--name")
    assert virsh("checkpoint-list", "vm1", *in_order).split() == ["one", "two", "three", "four"]
    assert virsh("checkpoint-list", "vm1", "--roots", "--name") == "one"
    assert virsh("checkpoint-list", "vm1", "--leaves", "--name") == "four"
    assert virsh("checkpoint-list", "vm1", "--from", "two", "--name") == "three"
    later = ("--from", "two", "--descendants", *in_order)
    assert virsh("checkpoint-list", "vm1", *later).split() == ["three", "four"]
    assert re.search(r"four +\S+ \S+ \S+ +three", virsh("checkpoint-list", "vm1", "--parent"))
    assert "Descendants:    3" in virsh("checkpoint-info", "vm1", "one")
    assert "no parent" in virsh("checkpoint-parent", "vm1", "one", code=1)
    told = virsh("checkpoint-dumpxml", "vm1", "one")
    assert "<description>the first</description>" in told
    assert '<disk name="sda" checkpoint="bitmap" bitmap="one"' in told
    assert "<name>vm1</name>" in told
    assert "<name>vm1</name>" not in virsh("checkpoint-dumpxml", "vm1", "one", "--no-domain")
    assert virsh("list", "--with-checkpoint", "--name") == "vm1"
    _edit(virsh, tmp_path)
    _refused(virsh)
    virsh("checkpoint-delete", "vm1", "two")
    assert virsh("checkpoint-parent", "vm1", "three") == "one"
    virsh("checkpoint-delete", "vm1", "three", "--children-only")
    machine.world.run("prlctl", "stop", "vm1", "--kill")
    assert machine.bitmaps() == {"one", "three"}
    virsh("checkpoint-delete", "vm1", "one", "--children")
    assert machine.bitmaps() == set()
    assert virsh("checkpoint-list", "vm1", "--name") == ""
    assert not (machine.home / "Checkpoints.json").exists()


def _edit(virsh: Virsh, work: Path) -> None:
    """The description is all that can be defined anew."""
    file = work / "one.xml"
    told = virsh("checkpoint-dumpxml", "vm1", "one")
    file.write_text(told.replace("the first", "the very first"))
    virsh("checkpoint-create", "vm1", os.fspath(file), "--redefine")
    assert "the very first" in virsh("checkpoint-dumpxml", "vm1", "one")
    file.write_text(CHECKPOINT.format("lost"))
    redefine = ("checkpoint-create", "vm1", os.fspath(file), "--redefine")
    assert "Only the description" in virsh(*redefine, code=1)


def _refused(virsh: Virsh) -> None:
    make = ("checkpoint-create-as", "vm1")
    assert "already" in virsh(*make, "two", code=1)
    assert "pyvz-" in virsh(*make, "pyvz-x", code=1)
    assert "no disk" in virsh(*make, "x", "--diskspec", "vdz", code=1)
    assert "agent is silent" in virsh(*make, "x", "--quiesce", code=1)
    assert "No domain checkpoint" in virsh("checkpoint-dumpxml", "vm1", "x", code=1)


def test_what_cannot_be_backed_up(machine: Machine, tmp_path: Path) -> None:
    """What is refused says why, and leaves nothing."""
    virsh, plan, target = machine.virsh, tmp_path / "plan.xml", tmp_path / "out"
    begin = ("backup-begin", "vm1", "--backupxml", os.fspath(plan))

    def refused(text: str) -> str:
        plan.write_text(text)
        return virsh(*begin, code=1)

    whole = BACKUP.format("", "sda", target, "qcow2")
    assert "does not run" in refused(whole)
    virsh("checkpoint-create-as", "vm1", "one")
    machine.world.run("prlctl", "start", "vm1")
    assert "push or pull" in refused("<domainbackup mode='both'/>")
    assert "where to" in refused("<domainbackup/>")
    assert "<server>" in refused(whole.replace("<disks>", "<server/><disks>"))
    assert "no checkpoint" in refused(
        whole.replace("<disks>", "<incremental>x</incremental><disks>")
    )
    since = "<incremental>one</incremental>"
    assert "qcow2" in refused(BACKUP.format(since, "sda", target, "raw"))
    assert "no disk" in refused(BACKUP.format("", "sdz", target, "qcow2"))
    assert "no backup" in virsh("backup-dumpxml", "vm1", code=1).lower()
    assert not target.exists()
    target.write_text("")
    assert "exists already" in refused(whole)
    target.unlink()
    machine.world.run("prlctl", "snapshot", "vm1")
    machine.world.run("prlctl", "snapshot-switch", "vm1", "-i", _snapshot(machine))
    assert "not known" in refused(BACKUP.format(since, "sda", target, "qcow2"))
    assert not target.exists()


def _snapshot(machine: Machine) -> str:
    return machine.virsh("snapshot-list", "vm1", "--name").strip()


def test_containers_have_none(world: World) -> None:
    world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1")
    virsh = Virsh(world)
    assert virsh("checkpoint-list", "ct1", "--name") == ""
    assert "is a container" in virsh("checkpoint-create-as", "ct1", "one", code=1)
    assert "is a container" in virsh("backup-begin", "ct1", code=1)


def test_no_room_for_a_backup(machine: Machine, tmp_path: Path) -> None:
    """A copy that fails leaves no image, and the machine as it was."""
    small, virsh, plan = tmp_path / "small", machine.virsh, tmp_path / "plan.xml"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", small], check=True)
    try:
        machine.world.run("prlctl", "start", "vm1")
        plan.write_text(BACKUP.format("", "sda", small / "out", "qcow2"))
        virsh("backup-begin", "vm1", "--backupxml", os.fspath(plan))
        wait_for(lambda: re.search("None", virsh("domjobinfo", "vm1")), 120)
        assert "Failed" in virsh("domjobinfo", "vm1", "--completed")
        wait_for(lambda: not list(small.iterdir()))
    finally:
        umount(small)
    machine.backup(tmp_path / "out.qcow2")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_backup_ends_early(machine: Machine, tmp_path: Path) -> None:
    """Called off, or its vzd dies: the machine runs, nothing is left, the next backup is whole."""
    subprocess.run(["qemu-img", "resize", "-q", machine.image, "1G"], check=True)
    words = ["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 50M 600M", machine.image]
    subprocess.run(words, check=True)
    world, virsh, target = machine.world, machine.virsh, tmp_path / "out.qcow2"
    plan = tmp_path / "plan.xml"
    plan.write_text(BACKUP.format("", "sda", target, "qcow2"))
    world.run("prlctl", "start", "vm1")

    virsh("backup-begin", "vm1", "--backupxml", os.fspath(plan))
    told = virsh("backup-dumpxml", "vm1")
    assert f'<target file="{target}"' in told
    virsh("domjobabort", "vm1")
    wait_for(lambda: re.search("None", virsh("domjobinfo", "vm1")), 120)
    wait_for(lambda: not target.exists())

    for delay in (0.0, 0.1, 0.3):
        virsh("backup-begin", "vm1", "--backupxml", os.fspath(plan))
        time.sleep(delay)
        world.kill_vzd()
        assert world.run("prlctl", "status", "vm1").split()[-1] == "running"
        world.run("prlctl", "set", "vm1", "--description", "repaired", "--timeout", "60")
        wait_for(lambda: not target.exists())
        wait_for(lambda: not list((world.root / "var/lib/pyvz/journal").iterdir()))
    machine.backup(target)
    world.run("prlctl", "stop", "vm1", "--kill")
    assert _same(target, machine.image)


PULL = """<domainbackup mode='pull'>{}<disks><disk name='sda'>{}</disk></disks></domainbackup>"""


def _pull(machine: Machine, server: str, part: str = "", *, mark: str = "") -> str:
    """Begin a backup in pull mode; returns what is said of it."""
    plan, checkpoint = machine.work / "pull.xml", machine.work / "checkpoint.xml"
    plan.write_text(PULL.format(server, part))
    words = ["backup-begin", "vm1", "--backupxml", os.fspath(plan)]
    if mark:
        checkpoint.write_text(CHECKPOINT.format(mark))
        words += ["--checkpointxml", os.fspath(checkpoint)]
    machine.virsh(*words)
    told = machine.virsh("backup-dumpxml", "vm1")
    validate(machine.work / "told.xml", told, "domainbackup")
    return told


def _written(export: str) -> int:
    """How many bytes the bitmap of an export says were written."""
    words = ["qemu-img", "map", "--output=json", "--image-opts", export]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return sum(row["length"] for row in json.loads(told) if not row["data"])


def _none(machine: Machine) -> None:
    wait_for(lambda: re.search("None", machine.virsh("domjobinfo", "vm1")), 120)


def _ended(machine: Machine) -> None:
    """Call the backup off: it is whole, and nothing of it is left."""
    machine.virsh("domjobabort", "vm1")
    _none(machine)
    assert "Completed" in machine.virsh("domjobinfo", "vm1", "--completed")
    assert "no backup" in machine.virsh("backup-dumpxml", "vm1", code=1).lower()
    wait_for(lambda: not list((machine.world.root / "run/pyvz/vm-backup").iterdir()))


@pytest.mark.requires("program:virt-xml-validate", "program:xmllint")
def test_a_client_pulls_what_changed(machine: Machine, tmp_path: Path) -> None:
    """Whole by a Unix socket, then what changed since by TCP; the disk is what was read."""
    virsh, socket, copy = machine.virsh, tmp_path / "nbd", tmp_path / "copy"
    machine.world.run("prlctl", "start", "vm1")
    told = _pull(machine, f"<server transport='unix' socket='{socket}'/>", mark="one")
    assert f'<server transport="unix" socket="{socket}" />' in told
    assert 'exportname="sda"' in told
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
    subprocess.run([*convert, f"nbd+unix:///sda?socket={socket}", copy], check=True)
    assert "Backup" in virsh("domjobinfo", "vm1")
    again = ("backup-begin", "vm1", "--backupxml", os.fspath(tmp_path / "pull.xml"))
    for words in (("managedsave", "vm1"), again):
        assert "back" in virsh(*words, code=1), words
    _ended(machine)
    wait_for(lambda: not socket.exists())
    machine.world.run("prlctl", "stop", "vm1", "--kill")
    assert _same(copy, machine.image)
    machine.write("new")
    machine.world.run("prlctl", "start", "vm1")
    scratch = tmp_path / "scratch"
    told = _pull(machine, "<incremental>one</incremental>", f"<scratch file='{scratch}'/>")
    assert 'exportbitmap="backup-sda"' in told
    assert f'<scratch file="{scratch}" />' in told
    wait_for(lambda: not scratch.exists())
    found = re.search(r'name="127.0.0.1" port="(\d+)"', told)
    assert found, told
    server = f"server.type=inet,server.host=127.0.0.1,server.port={found[1]}"
    bitmap = "x-dirty-bitmap=qemu:dirty-bitmap:backup-sda"
    assert 300_000 <= _written(f"driver=nbd,export=sda,{server},{bitmap}") < 16 << 20
    subprocess.run([*convert, f"nbd://127.0.0.1:{found[1]}/sda", copy], check=True)
    virsh("destroy", "vm1")
    _none(machine)
    assert "Failed" in virsh("domjobinfo", "vm1", "--completed")
    wait_for(lambda: not list((machine.world.root / "run/pyvz/vm-backup").iterdir()))
    assert _same(copy, machine.image)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_pulled_disk_stands_still(world: World, tiny_iso: Path, tmp_path: Path) -> None:
    """What the guest writes meanwhile is not seen; vzd dies, and the next backup is right."""
    guest, virsh, socket = Guest(world, tiny_iso), Virsh(world), tmp_path / "nbd"
    guest.prlctl("set", "vm1", "--device-del", "hdd0", "--destroy-image-force")
    guest.prlctl("set", "vm1", "--device-add", "hdd", "--size", "48M")
    guest.start()
    write = "dd if=/dev/urandom of=/dev/sda bs=1M count=8 conv=fsync 2>/dev/null"
    guest.inside(write)
    plan = tmp_path / "pull.xml"
    plan.write_text(f"<domainbackup mode='pull'><server transport='unix' socket='{socket}'/>"
                    "</domainbackup>")  # fmt: skip
    begin = ("backup-begin", "vm1", "--backupxml", os.fspath(plan))
    for killed in (True, False):
        wanted = guest.inside("md5sum </dev/sda").split()[0]
        virsh(*begin)
        guest.inside(write)
        assert guest.inside("md5sum </dev/sda").split()[0] != wanted
        read = ["qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=1M"]
        read += [f"if=nbd+unix:///sda?socket={socket}", f"of={tmp_path / 'disk'}"]
        subprocess.run(read, check=True)
        assert hashlib.md5((tmp_path / "disk").read_bytes()).hexdigest() == wanted
        if killed:
            world.kill_vzd()
            guest.prlctl("set", "vm1", "--description", "repaired", "--timeout", "60")
        else:
            virsh("domjobabort", "vm1")
        wait_for(lambda: not socket.exists())
    guest.prlctl("stop", "vm1", "--kill")
