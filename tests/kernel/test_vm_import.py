"""Disk images from elsewhere become images of ours, secluded from the node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyvz.errors import Cancelled, StorageError, VZError
from pyvz.linux.run import run
from pyvz.model.task import NoProgress
from pyvz.vm import foreign

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the view needs root"),
    pytest.mark.requires("program:qemu-img"),
]
SIZE = 8 << 20
FORMATS = {
    "qcow2": ("qcow2", ""),
    "raw": ("raw", ""),
    "vmdk": ("vmdk", ""),
    "stream": ("vmdk", "subformat=streamOptimized"),
    "vdi": ("vdi", ""),
    "vhdx": ("vhdx", ""),
    "vhd": ("vpc", "subformat=fixed,force_size=on"),
}


class Heard(NoProgress):
    """Remembers how far it was."""

    def __init__(self, *, cancel: bool = False) -> None:
        self.seen: list[tuple[int, int | None]] = []
        self.cancel = cancel

    def advance(self, done: int, total: int | None = None, *, unit: str = "B") -> None:
        del unit
        self.seen.append((done, total))

    def check(self) -> None:
        if self.cancel:
            raise Cancelled("called off")


def qemu_img(*words: object) -> None:
    run(["qemu-img", *map(str, words)])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(1 << 20)
        file.write(os.urandom(1 << 16))
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_formats(raw: Path, tmp_path: Path, name: str) -> None:
    kind, options = FORMATS[name]
    source = raw if kind == "raw" else tmp_path / "disk"
    if kind != "raw":
        more = ["-o", options] if options else []
        qemu_img("convert", "-f", "raw", "-O", kind, *more, raw, source)
    found = foreign.recognise(source)
    assert (found.format, found.size) == (kind, SIZE)
    heard = Heard()
    before = source.read_bytes()
    foreign.take_over(found, tmp_path, "disk.hdd", heard)
    assert heard.seen[-1] == (SIZE, SIZE)
    assert (tmp_path / "disk.hdd").stat().st_mode & 0o777 == 0o600
    qemu_img("convert", "-f", "qcow2", "-O", "raw", tmp_path / "disk.hdd", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == raw.read_bytes()
    assert source.read_bytes() == before


def test_a_member_of_an_archive(raw: Path, tmp_path: Path) -> None:
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw,
             tmp_path / "disk")  # fmt: skip
    content = (tmp_path / "disk").read_bytes()
    inside = tmp_path / "archive"
    inside.write_bytes(b"x" * 1536 + content + b"y" * 512)
    found = foreign.recognise(inside, 1536, len(content))
    foreign.take_over(found, tmp_path, "disk.hdd", NoProgress())
    qemu_img("convert", "-f", "qcow2", "-O", "raw", tmp_path / "disk.hdd", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == raw.read_bytes()


def test_refused(raw: Path, tmp_path: Path) -> None:
    for kind in ("qcow2", "vmdk"):
        qemu_img("convert", "-f", "raw", "-O", kind, raw, tmp_path / kind)
        child = tmp_path / f"{kind}.child"
        qemu_img("create", "-f", kind, "-b", tmp_path / kind, "-F", kind, child)
        with pytest.raises(StorageError, match=r"another file|not whole"):
            foreign.recognise(child)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat", raw,
             tmp_path / "flat.vmdk")  # fmt: skip
    (tmp_path / "odd").write_bytes(b"x" * 700)
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(raw)
    qemu_img("create", "-f", "qcow2", tmp_path / "huge", str(foreign.MAX_SIZE + 65536))
    for name in ("flat.vmdk", "odd", "empty", "link", "huge", "none"):
        with pytest.raises(VZError):
            foreign.recognise(tmp_path / name)


@pytest.mark.parametrize("name", ["qcow2", "stream", "vhdx"])
def test_cut_off(raw: Path, tmp_path: Path, name: str) -> None:
    """What is missing is not taken for zeros."""
    kind, options = FORMATS[name]
    words = ("-o", options) if options else ()
    qemu_img("convert", "-f", "raw", "-O", kind, *words, raw, tmp_path / "whole")
    foreign.recognise(tmp_path / "whole")
    cut = tmp_path / "cut"
    cut.write_bytes((tmp_path / "whole").read_bytes())
    os.truncate(cut, cut.stat().st_size - (5 << 20 if kind == "vhdx" else 70_000))
    with pytest.raises(StorageError):
        foreign.recognise(cut)


def test_called_off_it_leaves_nothing(raw: Path, tmp_path: Path) -> None:
    found = foreign.recognise(raw)
    with pytest.raises(Cancelled):
        foreign.take_over(found, tmp_path, "disk.hdd", Heard(cancel=True))
    assert not (tmp_path / "disk.hdd").exists()


def test_what_the_secluded_program_sees(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "directory"
    out.mkdir()

    def seen(*program: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "pyvz.vm.secluded", os.fspath(raw), os.fspath(out), "4096"]
        return subprocess.run([*argv, *program], capture_output=True, text=True, check=False)

    assert set(seen("ls", "/").stdout.split()) <= {
        *("bin", "dev", "in", "lib", "lib32", "lib64", "libx32", "out", "sbin", "usr")
    }
    assert seen("ls", "/dev").stdout == "null\n"
    assert seen("sh", "-c", "echo $$").stdout == "1\n"
    assert seen("sh", "-c", "echo x >/in").returncode != 0
    assert seen("chown", "1:1", "/out").returncode != 0
    assert seen("dd", "if=/dev/zero", "of=/out/x").returncode != 0
    assert seen("dd", "if=/in", "of=/out/large").returncode != 0
    assert (out / "large").stat().st_size <= 4096
    assert seen("/no/such").returncode == 125
