"""The identity form: header, block table, growing and shrinking, and a crash at every step."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvz.errors import FileMissing, NoSpace, StorageError, Unsupported
from pyvz.image import file, identity
from pyvz.image.header import CLUSTER, IN_USE, SECTOR, Header, geometry

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "root.hds"
    identity.create(path, 8 * MIB)
    return path


@pytest.mark.parametrize("size", [MIB, 199 << 30, 1 << 40, 3 << 40])
def test_a_new_disk_can_grow(tmp_path: Path, size: int) -> None:
    """Fourfold at least, whoever makes it: also one that comes from a backup or another node."""
    path = tmp_path / "root.hds"
    identity.create(path, size)
    assert identity.grow(path, 4 * size) == 4 * size
    assert identity.data_offset(path) % CLUSTER == 0


@given(
    version=st.sampled_from([1, 2]),
    bits=st.integers(15, 26),
    clusters=st.integers(1, 1 << 16),
    word=st.integers(0, 2**32 - 1),
)
def test_a_header_survives_writing_and_reading(
    version: int, bits: int, clusters: int, word: int
) -> None:
    cluster = 1 << bits
    data = -(-(64 + 4 * clusters) // cluster) * cluster
    header = Header(version, cluster, clusters, clusters * cluster, data, in_use=word)
    if version == 1 and header.size // SECTOR > 0xFFFFFFFF:
        with pytest.raises(StorageError):
            header.to_bytes()
        return
    assert Header.parse(header.to_bytes()) == header


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_refused(raw: bytes) -> None:
    with pytest.raises(StorageError):
        Header.parse(raw)


@given(at=st.integers(0, 63), value=st.integers(0, 255))
def test_a_header_with_a_wrong_byte_is_legal_or_refused(at: int, value: int) -> None:
    raw = bytearray(Header(2, CLUSTER, 100, 100 * CLUSTER, CLUSTER).to_bytes())
    raw[at] = value
    try:
        found = Header.parse(bytes(raw))
    except StorageError:
        return
    assert found.data >= found.bat_end
    assert 0 < found.size <= found.clusters * found.cluster


@pytest.mark.parametrize(
    ("sectors", "expected"),
    [
        (4194304, (16, 4161, 63)),
        (1008, (16, 1, 63)),
        (2048, (16, 4, 32)),
        (16777216, (16, 32768, 32)),
        (7, (1, 7, 1)),
    ],
)
def test_geometry_is_that_of_ploop(sectors: int, expected: tuple[int, int, int]) -> None:
    assert geometry(sectors) == expected


def test_a_new_image_is_whole_and_small(image: Path) -> None:
    assert identity.size(image) == 8 * MIB
    assert identity.data_offset(image) == identity.RESERVE
    assert identity.is_identity(image)
    assert identity.check(image).clean
    assert image.stat().st_blocks * 512 < 64 << 10
    assert image.stat().st_size == identity.RESERVE + 8 * MIB
    raw = image.read_bytes()[:96]
    assert raw[:16] == b"WithouFreSpacExt"
    assert struct.unpack_from("<8I", raw, 64) == tuple(range(4, 12))
    assert os.listdir(image.parent) == [image.name]


def test_sizes_are_whole_clusters_and_never_nothing(tmp_path: Path) -> None:
    identity.create(tmp_path / "a", 1)
    assert identity.size(tmp_path / "a") == MIB
    with pytest.raises(StorageError):
        identity.create(tmp_path / "b", 0)
    assert os.listdir(tmp_path) == ["a"]


def test_a_large_disk_gets_the_room_it_needs(tmp_path: Path) -> None:
    identity.create(tmp_path / "a", 2 << 40, reserve=MIB)
    assert identity.data_offset(tmp_path / "a") == 9 * MIB
    assert identity.capacity(identity.RESERVE) > (1 << 40) - (1 << 30)


def test_nothing_is_replaced(image: Path) -> None:
    before = image.read_bytes()
    with pytest.raises(FileExistsError):
        identity.create(image, 4 * MIB)
    assert image.read_bytes() == before
    assert os.listdir(image.parent) == [image.name]


def test_growing_and_shrinking_keep_the_data(image: Path) -> None:
    write(image, 5 * MIB, b"data")
    assert identity.grow(image, 20 * MIB) == 20 * MIB
    assert identity.check(image).clean
    assert content(image)[5 * MIB :][:4] == b"data"
    assert identity.shrink(image, 6 * MIB) == 6 * MIB
    assert identity.check(image).clean
    assert content(image)[5 * MIB :][:4] == b"data"


def test_what_was_cut_off_does_not_come_back(image: Path) -> None:
    write(image, 7 * MIB, b"secret")
    identity.shrink(image, 4 * MIB)
    with image.open("r+b") as opened:  # as if the crash came before the file was cut
        opened.truncate(identity.RESERVE + 8 * MIB)
        opened.seek(identity.RESERVE + 7 * MIB)
        opened.write(b"secret")
    assert identity.check(image).leaks
    identity.grow(image, 8 * MIB)
    assert content(image) == bytes(8 * MIB)


def test_growing_beyond_the_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small"
    identity.create(path, MIB, reserve=MIB)
    with pytest.raises(Unsupported, match="no room"):
        identity.grow(path, identity.capacity(MIB) + 1)
    assert identity.size(path) == MIB
    with pytest.raises(StorageError):
        identity.grow(path, 0)
    identity.grow(path, 3 * MIB)
    with pytest.raises(StorageError, match="less"):
        identity.grow(path, MIB)
    with pytest.raises(StorageError, match="more"):
        identity.shrink(path, 9 * MIB)


def test_the_mark_of_use(image: Path) -> None:
    assert not identity.in_use(image)
    identity.set_in_use(image)
    assert identity.in_use(image)
    assert struct.unpack_from("<I", image.read_bytes(), 44) == (IN_USE,)
    found = identity.check(image)
    assert found.in_use
    assert found.clean
    assert identity.check(image, repair=True).repaired
    assert not identity.in_use(image)


def test_damage_is_found(image: Path) -> None:
    with image.open("r+b") as opened:
        opened.truncate(identity.RESERVE + 7 * MIB)
    assert "cut off" in identity.check(image).errors[0]
    with pytest.raises(StorageError, match="cut off"):
        identity.data_offset(image)
    assert identity.check(image, repair=True).repaired
    assert identity.check(image).clean
    with image.open("r+b") as opened:
        opened.seek(64 + 4 * 5)
        opened.write(struct.pack("<I", 4))
    assert "entry 5" in identity.check(image, repair=True).errors[0]
    assert not identity.is_identity(image)
    with pytest.raises(StorageError, match="identity"):
        identity.data_offset(image)


def test_only_regular_files_are_opened(tmp_path: Path, image: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(image)
    os.mkfifo(tmp_path / "fifo")
    for path in (link, tmp_path / "fifo", tmp_path, Path("/dev/null")):
        with pytest.raises(StorageError):
            identity.size(path)
        with pytest.raises((StorageError, OSError)):
            identity.set_in_use(path)
    with pytest.raises(FileMissing):
        identity.size(tmp_path / "none")


# A crash at every step: the writes of a change are recorded, and every prefix of them is played
# on a copy of the file.  Writes between two fsyncs may come in any order, so also each alone.

Step = tuple[str, tuple[object, ...]]


def recorded(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> list[Step]:
    steps: list[Step] = []
    pwrite, truncate, fsync = os.pwrite, os.ftruncate, os.fsync

    def record(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def act(fd: int, *args: object) -> object:
            steps.append((name, tuple(bytes(a) if isinstance(a, memoryview) else a for a in args)))
            return call(fd, *args)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", record("pwrite", pwrite))
        patch.setattr(os, "ftruncate", record("truncate", truncate))
        patch.setattr(os, "fsync", record("fsync", fsync))
        change()
    return steps


def crashes(steps: list[Step]) -> Iterator[list[Step]]:
    """Every set of writes that can be on the disk after a crash."""
    durable: list[Step] = []
    pending: list[Step] = []
    for step in steps:
        if step[0] == "fsync":
            durable += pending
            pending = []
            continue
        pending.append(step)
        for mask in range(1 << len(pending)):
            yield durable + [each for number, each in enumerate(pending) if mask >> number & 1]
    yield durable + pending


def play(path: Path, before: bytes, steps: list[Step]) -> None:
    path.write_bytes(before)
    with path.open("r+b") as opened:
        for name, args in steps:
            if name == "truncate":
                opened.truncate(args[0])  # type: ignore[arg-type]
            else:
                os.pwrite(opened.fileno(), *args)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["grow", "shrink"])
def test_a_crash_leaves_the_old_disk_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    image = tmp_path / "root.hds"
    identity.create(image, 3 * MIB, reserve=MIB)
    write(image, 0, b"first")
    write(image, 2 * MIB, b"last")
    before, old = image.read_bytes(), content(image)
    size = 5 * MIB if change == "grow" else 2 * MIB
    steps = recorded(monkeypatch, lambda: getattr(identity, change)(image, size))
    new = content(image)
    found = set()
    for number, done in enumerate(crashes(steps)):
        crashed = tmp_path / f"crash{number}"
        play(crashed, before, done)
        report = identity.check(crashed)
        assert report.errors == ()
        assert content(crashed) in (old, new)
        found.add(content(crashed) == new)
        assert identity.check(crashed, repair=True).clean
        assert identity.check(crashed).clean
        getattr(identity, change)(crashed, size)  # done again, it comes to its end
        assert content(crashed) == new
        assert identity.check(crashed).clean
        crashed.unlink()
    assert found == {True, False}


@pytest.mark.parametrize("step", range(6))
def test_a_full_file_system_is_named_and_leaves_the_old_disk(
    image: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    count = 0

    def fail(call: Callable[..., object]) -> Callable[..., object]:
        def act(fd: int, *args: object) -> object:
            nonlocal count
            count += 1
            if count > step:
                raise OSError(28, "No space left on device")
            return call(fd, *args)

        return act

    with monkeypatch.context() as patch:
        for name in ("pwrite", "ftruncate", "fsync"):
            patch.setattr(os, name, fail(getattr(os, name)))
        with pytest.raises(NoSpace):
            identity.grow(image, 16 * MIB)
        with pytest.raises(NoSpace):
            identity.create(image.with_name("other"), 16 * MIB)
    assert os.listdir(image.parent) == [image.name]
    assert identity.check(image).errors == ()
    assert identity.size(image) in (8 * MIB, 16 * MIB)


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(1, 40 * MIB), min_size=1, max_size=6))
def test_any_sequence_of_sizes(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    path = tmp_path_factory.mktemp("sizes") / "root.hds"
    identity.create(path, sizes[0])
    for size in sizes:
        change = identity.grow if size > identity.size(path) else identity.shrink
        assert change(path, size) == -(-size // MIB) * MIB
        assert identity.check(path).clean
    path.unlink()


def write(path: Path, at: int, data: bytes) -> None:
    with file.opened(path, write=True) as fd:
        file.write_at(fd, data, identity.data_offset(path) + at)


def content(path: Path) -> bytes:
    with file.opened(path) as fd:
        header = identity.read_header(fd)
        return file.read_at(fd, header.size, header.data).ljust(header.size, b"\0")
