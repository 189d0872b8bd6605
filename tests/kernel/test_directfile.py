"""Files past the page cache: what is written is what is read, whatever the pieces and the disk."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from pyvz.linux.directfile import BLOCK, Buffers, Sink, Source

LENGTHS = (1, BLOCK, 3 << 20, 700_001, 2 << 20, 5, (1 << 20) + 1, 0, 1 << 20)


@pytest.mark.parametrize("direct", [True, False])
def test_pieces_of_any_length(tmp_path: Path, *, direct: bool) -> None:
    buffers, found = Buffers(max(LENGTHS) + 2 * BLOCK), []
    with Sink(tmp_path / "part", direct=direct) as sink:
        for length in LENGTHS:
            memory = buffers.take()
            memory[:length] = data = os.urandom(length)
            found.append((sink.append(memory[:length], paged=True), data))
            memory[:length] = bytes(length)  # it was taken
            buffers.give(memory)
        sink.sync()
    whole = (tmp_path / "part").read_bytes()
    assert all(whole[at : at + len(data)] == data for at, data in found)
    assert len(whole) <= sum(LENGTHS) + len(LENGTHS) * BLOCK
    with Source(tmp_path / "part") as source:
        for at, data in found:
            assert source.read(at, len(data), buffers.take()) == data
        at, data = found[-1]
        assert source.read(at + 7, len(data), buffers.take())[: len(data) - 7] == data[7:]
        assert not source.read(1 << 30, 2 << 20, buffers.take())


def test_a_file_system_that_does_not_do_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = os.pwrite

    def pwrite(fd: int, data: memoryview, at: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "not here")
        return written(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    memory = Buffers(2 << 20).take()
    memory[:] = data = os.urandom(2 << 20)
    with Sink(tmp_path / "part", direct=True) as sink:
        assert (sink.append(b"first"), sink.append(memory, paged=True)) == (0, BLOCK)
        sink.sync()
    assert (tmp_path / "part").read_bytes()[BLOCK:] == data


def test_memory_is_used_again() -> None:
    buffers = Buffers(BLOCK)
    first = buffers.take()
    first[:4] = b"mark"
    buffers.give(memoryview(first[1:3].obj))
    assert bytes(buffers.take()[:4]) == b"mark"
    assert len(buffers.take()) == BLOCK
