"""Every image that a disk leaves is read by another tool: qemu-img check and compare."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import places
from pyvz.image import descriptor, identity
from pyvz.linux import mount
from pyvz.model.task import NoProgress
from pyvz.storage import base

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
    pytest.mark.requires("program:qemu-img"),
]

MIB = 1 << 20
SIZE = 320 * MIB
ONE, TWO = (f"{{{n}0000000-0000-4000-8000-00000000000{n}}}" for n in (1, 2))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with places.file_system("xfs", tmp_path / "pool", 3 << 30) as made:
        yield made
        assert mount.mounts(made.resolve())[1:] == []


@pytest.mark.parametrize("name", ["ploop", "qcow2"])
def test_through_the_life_of_a_disk(place: Path, name: str) -> None:
    driver = base.load(name)
    home, other, target = place / "home", place / "other", place / "root"
    home.mkdir()
    other.mkdir()
    driver.create(home, size=SIZE, source=None, progress=NoProgress())
    sound(home, name)
    driver.mount(home, target)
    (target / "file").write_bytes(os.urandom(3 * MIB))
    driver.snapshot(home, ONE)
    (target / "file").write_bytes(os.urandom(5 * MIB))
    driver.resize(home, SIZE + 64 * MIB)
    driver.snapshot(home, TWO)
    (target / "file").unlink()
    driver.umount(home, target)
    sound(home, name)
    driver.switch(home, ONE)
    sound(home, name)
    driver.clone(home, other, NoProgress())
    driver.delete_snapshot(home, ONE)
    driver.compact(home)
    sound(home, name, compared=True)
    sound(other, name)
    for each in (home, other):
        driver.remove(each, NoProgress())


def sound(home: Path, name: str, *, compared: bool = False) -> None:
    """Every image is sound; compared: and shows QEMU's reader what the loop device shows."""
    if name == "qcow2":
        check(home / "qcow2/disk.qcow2", "qcow2")
        return
    directory = home / "root.hdd"
    for image in descriptor.load(directory / descriptor.NAME).images:
        path = directory / image.file
        check(path, "parallels")
        if not compared:
            continue
        raw = {
            **{"driver": "raw", "offset": identity.data_offset(path)},
            **{"size": identity.size(path), "file.driver": "file"},
            "file.filename": os.fspath(path),
        }
        argv = ["qemu-img", "compare", "-U", f"json:{json.dumps(raw)}", "-F", "parallels", path]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert "identical" in done.stdout, done.stderr


def check(path: Path, form: str) -> None:
    argv = ["qemu-img", "check", "--output=json", "-f", form, path]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert not any(found.get(key) for key in ("corruptions", "leaks", "check-errors")), found
