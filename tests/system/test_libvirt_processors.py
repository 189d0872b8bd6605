"""Processors compared by virsh, and pages of memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from pyvz.vm import processors
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("root", "program:virsh", "program:qemu-system-x86_64")

ABSENT = "<feature name='vmx-ept'/>"  # of no node that runs tests, KVM or not
CPU = "<cpu mode='custom'><model>{}</model>{}</cpu>"


def test_processors_are_compared(world: World, tmp_path: Path) -> None:
    virsh, file = Virsh(world), tmp_path / "cpu.xml"
    world.run("prlctl", "list")  # vzd begins

    def told(words: str, text: str, code: int = 0) -> str:
        file.write_text(text)
        return virsh(*words.split(), os.fspath(file), code=code)

    for compare in ("cpu-compare", "hypervisor-cpu-compare"):
        assert "superset" in told(compare, CPU.format("qemu64", ""))
        assert "is identical" in told(compare, "<cpu mode='host-passthrough'/>")
        told(compare, CPU.format("Nehalem", ABSENT), 1)  # what it says is on its output
        assert "not known" in told(compare, CPU.format("Abacus", ""), 1)
        assert "not known" in told(compare, CPU.format("qemu64", "<feature name='x'/>"), 1)
    error = told("cpu-compare --error", CPU.format("qemu64", ABSENT), 1)
    assert "vmx-ept" in error
    without = CPU.format("qemu64", "<feature policy='disable' name='pni'/>")
    both = CPU.format("Nehalem", "") + CPU.format("qemu64", "")
    for baseline in ("cpu-baseline", "hypervisor-cpu-baseline"):
        found = re.search(r"<model fallback=.forbid.>(\S+)</model>", told(baseline, both))
        assert found
        assert found[1] in {"qemu64", "kvm64", "qemu32", "kvm32", "pentium3"}, found
        assert "name=" in told(f"{baseline} --features", without)
        assert 'name="pni"' not in told(f"{baseline} --features", without)
    assert "qemu64" in virsh("cpu-models", "x86_64").split()
    assert re.search(r"4KiB: +\d+", virsh("freepages", "0", "4"))
    assert "4KiB" in virsh("freepages", "--all")
    assert "no pages" in virsh("freepages", "0", "3", code=1)


def test_the_nearest_model() -> None:
    models = {
        "old": frozenset("ab"), "new-v1": frozenset("abc"), "new": frozenset("abc"),
        "odd": frozenset("az"),
    }  # fmt: skip
    assert processors.nearest(models, frozenset("abcd")) == "new"
    assert processors.nearest(models, frozenset("abd")) == "old"
    assert processors.nearest(models, frozenset("b")) is None
    assert processors.canonical("pclmuldq") == "pclmulqdq"
    assert processors.canonical("lahf_lm") == "lahf-lm"
