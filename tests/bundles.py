"""Ploop disks of virtual machines, whose content a test writes itself: no guest is needed."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from pyvz.storage import bundle

MIB = 1 << 20
Run = Callable[..., str]  # a command line of a node: program, words; returns what it prints


def put(path: Path, data: bytes, at: int = 0) -> None:
    """Write into a disk that nobody has."""
    place = bundle.find(path)
    with place.image.open("r+b") as stream:
        stream.seek(place.offset + at)
        stream.write(data)


def got(path: Path, length: int, at: int = 0) -> bytes:
    """What a disk has."""
    place = bundle.find(path)
    with place.image.open("rb") as stream:
        stream.seek(place.offset + at)
        return stream.read(length)


def digest(path: Path) -> str:
    """The sum of all that a disk has."""
    return hashlib.sha256(got(path, bundle.find(path).size)).hexdigest()


def made(run: Run, path: Path, size: int = 16, data: int = 2) -> Path:
    """Make a disk of SIZE MiB, with DATA MiB of noise in it, from its first byte on."""
    path.mkdir(mode=0o700)
    run("ploop", "init", "-s", f"{size}M", "-t", "none", os.fspath(path / "root.hds"))
    put(path, os.urandom(data * MIB))
    return path


def check(run: Run, path: Path) -> None:
    """Have it be whole, with nothing in it that it does not name, and holes where nothing is."""
    said = run("ploop", "check", os.fspath(path / "DiskDescriptor.xml"))
    assert not any(word in said for word in ("repair", "leak", "belong", "not closed")), said
    named = {"DiskDescriptor.xml", "DiskDescriptor.xml.lck", bundle.find(path).image.name}
    assert {each.name for each in path.iterdir()} == named | set(bundle.snapshots(path))
    image = bundle.find(path).image.stat()
    assert image.st_blocks * 512 < image.st_size - 8 * MIB  # 4 of it for the header


def write_inside(root: Path, uuid: str, disk: str, words: str) -> None:
    """Have QEMU write as the guest would: `write -P 7 0 64k`.  Its vzd must be dead."""
    monitor = socket.socket(socket.AF_UNIX)
    with monitor, monitor.makefile("rw") as stream:
        monitor.settimeout(120)
        monitor.connect(os.fspath(root / "run/pyvz/vm" / uuid / "monitor.sock"))
        command = f'qemu-io -d device-{disk} "{words}"'
        asked = {"command-line": command}
        for each in (
            {"execute": "qmp_capabilities"},
            {"execute": "human-monitor-command", "arguments": asked},
        ):
            stream.write(json.dumps(each))
            stream.flush()
            while not ("return" in (line := json.loads(stream.readline())) or "error" in line):
                pass
            assert "error" not in line, line
            assert "rror" not in str(line.get("return", "")), line
