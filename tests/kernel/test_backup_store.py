"""Chunks, indexes and catalogs on disk: what is stored comes back, what is damaged is told."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvz.backup import catalog
from pyvz.backup.catalog import Entry, Piece, Stamp
from pyvz.backup.chunk import Audit, Chunks, Writer
from pyvz.backup.image import Index
from pyvz.errors import BackupDamaged


@pytest.fixture
def chunks() -> Iterator[Chunks]:
    # In memory: each flush writes out a whole file system.
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="pv-") as directory:
        made = Chunks(Path(directory))
        made.make_directories()
        yield made


def test_index_pages_are_shared(chunks: Chunks) -> None:
    with Writer(chunks) as writer:
        index = Index(10 << 30, (), chunks.get)
        index[0], index[40000] = b"a" * 32, b"b" * 32
        first = index.store(writer)
        assert [bool(page) for page in first].count(True) == 2
        writer.flush()
        again = Index(10 << 30, first, chunks.get)
        again[40000] = None
        again[1] = b"c" * 32
        second = again.store(writer)
        writer.flush()
        assert dict(again.items()) == {0: b"a" * 32, 1: b"c" * 32}
        assert dict(Index(10 << 30, first, chunks.get).items())[40000] == b"b" * 32
        assert second[19] == ""
        smaller = again.resized(1)
        assert dict(smaller.items()) == {0: b"a" * 32}


names = (  # any bytes but two, as the kernel has it
    st.binary(min_size=1, max_size=20)
    .map(lambda raw: os.fsdecode(raw.replace(b"/", b"_").replace(b"\0", b"_")))
    .filter(lambda name: name not in {".", ".."})
)
entries = st.builds(
    Entry,
    path=names,
    mode=st.integers(0, 0o177777),
    uid=st.integers(0, 1 << 31),
    gid=st.integers(0, 1 << 31),
    stamp=st.builds(Stamp, *[st.integers(-(1 << 62), 1 << 62)] * 4),
    link=names,
    xattrs=st.dictionaries(names, st.binary(max_size=50), max_size=3),
    pieces=st.lists(
        st.builds(
            Piece, st.integers(0, 1 << 50), st.integers(0, 1 << 18),
            st.binary(min_size=32, max_size=32), st.integers(0, 1 << 18),
        ),
        max_size=3,
    ),
)  # fmt: skip


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None
)
@given(st.lists(entries, unique_by=lambda entry: entry.path, max_size=8))
def test_catalog_comes_back(chunks: Chunks, made: list[Entry]) -> None:
    with Writer(chunks) as writer:
        pages = catalog.store(made, writer)
        writer.flush()
    assert list(catalog.load(pages, chunks.get)) == made


def test_file_of_many_pieces_comes_back(chunks: Chunks) -> None:
    big = Entry("big", 0o100644, 0, 0, Stamp(1, 2, 3, 4))
    big.pieces = [Piece(n << 18, 1 << 18, bytes([n % 256]) * 32, 0) for n in range(5000)]
    with Writer(chunks) as writer:
        pages = catalog.store([big], writer)
        writer.flush()
    assert len(pages) > 1
    assert list(catalog.load(pages, chunks.get)) == [big]


@pytest.mark.parametrize("path", ["/etc/x", "a/../../x", "..", "a\0b"])
def test_catalog_leads_nowhere_else(chunks: Chunks, path: str) -> None:
    with Writer(chunks) as writer:
        pages = catalog.store([Entry(path, 0o100644, 0, 0, Stamp(1, 2, 3, 4))], writer)
        writer.flush()
    with pytest.raises(BackupDamaged):
        list(catalog.load(pages, chunks.get))


def test_chunks_are_checked(chunks: Chunks) -> None:
    with Writer(chunks) as writer:
        first = writer.put(b"one" * 1000)
        second = writer.put(b"two" * 1000)
        writer.flush()
        assert writer.put(b"one" * 1000) == first
        assert writer.new == 2
    assert chunks.get(first) == b"one" * 1000
    chunks.place(first).write_bytes(chunks.place(second).read_bytes())
    with pytest.raises(BackupDamaged, match="content is another"):
        chunks.get(first)
    chunks.place(first).write_bytes(b"")
    with pytest.raises(BackupDamaged, match="damaged"):
        chunks.get(first)
    assert set(chunks.names()) == {first, second}  # a reader changes nothing
    with pytest.raises(BackupDamaged, match="damaged"):
        Audit(chunks.repository).get(first)
    with pytest.raises(BackupDamaged, match="missing"):
        chunks.get(first)
    with pytest.raises(BackupDamaged, match="3000 bytes"):
        Audit(chunks.repository).get(second, 1)  # whole: it keeps its name
    assert list(chunks.names()) == [second]
