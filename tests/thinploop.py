"""Disks as OpenVZ 6 and 7 leave them, built by the published format: thin images, delta stacks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from places import umount
from pyvz.image import descriptor, gpt
from pyvz.image.descriptor import EXPANDED, NO_PARENT, TOP_GUID, Descriptor, Image, Shot
from pyvz.image.header import BAT_ENTRY, HEADER_SIZE, Header

MIB = 1 << 20
GUIDS = tuple(f"{{{n}5ba3e1c-1111-4222-8333-44444444444{n}}}" for n in range(1, 8))


def states(directory: Path, contents: Sequence[bytes], size: int, *, table: bool) -> list[Path]:
    """Raw disks, each with one more change than the one before: /file has that content.

    table: inside of a partition, as OpenVZ makes them.
    """
    made: list[Path] = []
    mnt = directory / "mnt"
    mnt.mkdir()
    for number, content in enumerate(contents):
        raw = directory / f"state{number}"
        if not made:
            with raw.open("wb") as stream:
                stream.truncate(size)
            start, length = _partition(raw, size, table=table)
            loop = _run("losetup", "-f", "--show", "-o", start, "--sizelimit", length, raw)
            _run("mkfs.ext4", "-q", loop)
        else:
            _run("cp", "--sparse=always", made[-1], raw)
            start, length = _partition(raw, size, table=table, old=True)
            loop = _run("losetup", "-f", "--show", "-o", start, "--sizelimit", length, raw)
        _run("mount", loop, mnt)
        (mnt / "file").write_bytes(content)
        (mnt / f"since{number}").write_bytes(os.urandom(MIB))
        # A copy of our mounts elsewhere (another run's container) may keep it mounted for a moment.
        _run("sync", "-f", mnt)
        umount(mnt)
        _run("losetup", "-d", loop)
        made.append(raw)
    mnt.rmdir()
    return made


def _partition(raw: Path, size: int, *, table: bool, old: bool = False) -> tuple[int, int]:
    if not table:
        return 0, size
    with raw.open("r+b") as stream:
        fd = stream.fileno()
        part = gpt.find(fd, 0, size) if old else gpt.write(fd, 0, size)
    assert part is not None
    return part.offset, part.size


def stack(directory: Path, raws: Sequence[Path], *, version: int = 2) -> Descriptor:
    """Make `directory` a disk whose deltas are those states, the last one its top."""
    directory.mkdir()
    size = raws[0].stat().st_size
    guids = [*GUIDS[: len(raws) - 1], TOP_GUID]
    images, shots = [], []
    below = None
    for number, raw in enumerate(raws):
        name = "root.hds" if number == 0 else f"root.hds.{GUIDS[number - 1]}"
        delta(directory / name, below, raw, version=version)
        images.append(Image(guids[number], name))
        shots.append(Shot(guids[number], guids[number - 1] if number else NO_PARENT))
        below = raw
    made = Descriptor(size, images=tuple(images), snapshots=tuple(shots), mode=EXPANDED).checked()
    descriptor.save(directory / descriptor.NAME, made)
    return made


def delta(path: Path, old: Path | None, new: Path, *, version: int) -> None:
    """A thin image with the clusters in which NEW differs from OLD (from nothing but zeros)."""
    size = new.stat().st_size
    count = size // MIB
    header = Header(version=version, cluster=MIB, clusters=count, size=size, data=MIB)
    table = bytearray(BAT_ENTRY * count)
    with path.open("wb") as out, new.open("rb") as stream:
        below = old.open("rb") if old else None
        at = 1
        for index in range(count):
            data = stream.read(MIB)
            if data == (below.read(MIB) if below else bytes(MIB)):
                continue
            out.seek(at * MIB)
            out.write(data)
            entry = at * (MIB // 512 if version == 1 else 1)
            table[index * 4 : index * 4 + 4] = entry.to_bytes(4, "little")
            at += 1
        if below:
            below.close()
        out.seek(0)
        out.write(header.to_bytes())
        out.seek(HEADER_SIZE)
        out.write(table)
        if out.seek(0, 2) < MIB:
            out.truncate(MIB)


def _run(*argv: object) -> str:
    words = [str(word) for word in argv]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
