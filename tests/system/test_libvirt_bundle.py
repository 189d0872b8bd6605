"""A ploop disk of a virtual machine in the hands of libvirt's clients: backups and copies of it.

Checkpoints of it are known as long as its QEMU lives.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from test_libvirt_checkpoints import Machine, machine

from bundles import digest, got, made, write_inside
from images import busybox_root, busybox_tar
from networld import wait_for
from pyvz.storage import bundle
from realnode import world

__all__ = ["busybox_root", "busybox_tar", "machine", "world"]
pytestmark = pytest.mark.requires(
    "root", "program:virsh", "program:qemu-system-x86_64",
    "program:qemu-storage-daemon", "program:mke2fs",
)  # fmt: skip


def _content(image: Path, work: Path) -> bytes:
    raw = work / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    return raw.read_bytes()


def test_backups_of_what_changed(machine: Machine, tmp_path: Path) -> None:
    world, virsh = machine.world, machine.virsh
    world.run("prlctl", "set", "vm1", "--device-del", "hdd0", "--destroy-image-force")
    own = made(world.run, machine.home / "own.hdd")
    world.run("prlctl", "set", "vm1", "--device-add", "hdd", "--image", os.fspath(own))
    begin = ("checkpoint-create-as", "vm1", "one")
    assert "while it does not run" in virsh(*begin, code=1)
    world.run("prlctl", "start", "vm1")
    full, part = tmp_path / "full.qcow2", tmp_path / "part.qcow2"
    machine.backup(full, "", "one")
    assert _content(full, tmp_path) == got(own, bundle.find(own).size)
    world.kill_vzd()
    write_inside(world.root, machine.home.name, "hdd0", "write -q -P 7 4M 64k")
    world.run("prlctl", "status", "vm1")  # another vzd: virsh starts none
    machine.backup(part, "one", "two")
    assert part.stat().st_size < 1 << 20 < full.stat().st_size
    rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", full, part]
    subprocess.run(rebase, check=True)
    assert _content(part, tmp_path) == got(own, bundle.find(own).size)
    copy = tmp_path / "copy"
    virsh("blockcopy", "vm1", "sda", os.fspath(copy), "--transient-job", "--wait", "--finish")
    wait_for(copy.exists, 60)

    world.run("prlctl", "stop", "vm1", "--kill")
    assert copy.read_bytes() == got(own, bundle.find(own).size)
    wanted = digest(own)
    world.run("prlctl", "start", "vm1")
    plan = tmp_path / "backup.xml"
    plan.write_text(plan.read_text().replace(os.fspath(part), os.fspath(tmp_path / "x")))
    assert "not known" in virsh("backup-begin", "vm1", "--backupxml", os.fspath(plan), code=1)
    for name in ("one", "two"):
        virsh("checkpoint-delete", "vm1", name)
    virsh(*begin)
    assert 'bitmap="one"' in virsh("checkpoint-dumpxml", "vm1", "one", "--size")
    world.run("prlctl", "stop", "vm1", "--kill")
    virsh("checkpoint-delete", "vm1", "one")
    assert digest(own) == wanted
