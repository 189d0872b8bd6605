"""Memory that is handed on while CRIU writes it: FIFOs, and files that grow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvz.container.fifos import Fifos
from pyvz.container.growing import Growing
from pyvz.errors import Cancelled


class Taken:
    """What was handed on, file by file."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}

    def put(self, name: str, offset: int, data: memoryview) -> None:
        found = self.files.setdefault(name, bytearray())
        assert offset == len(found)
        found += data


def write(images: Path, number: int, data: bytes) -> None:
    """Write a file as CRIU does: opened once, from front to back."""
    with (images / f"pages-{number}.img").open("wb", buffering=0) as file:
        for start in range(0, len(data), 300_000):
            file.write(data[start : start + 300_000])


@pytest.mark.parametrize("kind", ["fifos", "growing"])
def test_all_that_is_written_is_handed_on(kind: str, tmp_path: Path) -> None:
    taken = Taken()
    reader: Fifos | Growing
    if kind == "fifos":
        reader = Fifos(tmp_path, 4, taken.put, piece=1 << 20)
    else:
        reader = Growing(tmp_path, taken.put, piece=1 << 20)
    reader.start()
    contents = [os.urandom(3_000_000), os.urandom(10), b"", os.urandom(1 << 20)]
    for number, data in enumerate(contents, 1):
        write(tmp_path, number, data)
    sizes = reader.drain()
    reader.close()
    wanted = {f"pages-{number}.img": data for number, data in enumerate(contents, 1)}
    assert {name: bytes(data) for name, data in taken.files.items()} == {
        name: data for name, data in wanted.items() if data
    }
    for name, size in sizes.items():
        assert size == len(wanted[name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["fifos", "growing"])
def test_what_a_taker_raises_is_raised(kind: str, tmp_path: Path) -> None:
    def put(_name: str, _offset: int, _data: memoryview) -> None:
        raise Cancelled("enough")

    reader: Fifos | Growing
    reader = (
        Fifos(tmp_path, 1, put, piece=1 << 20)
        if kind == "fifos"
        else Growing(tmp_path, put, piece=1 << 20)
    )
    reader.start()
    # A FIFO whose reader is gone: EPIPE tells CRIU.
    try:
        write(tmp_path, 1, bytes(3 << 20))
    except BrokenPipeError:
        assert kind == "fifos"
    with pytest.raises(Cancelled):
        reader.drain()
    reader.close()
