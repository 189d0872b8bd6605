"""Thin images and stacks: read as they are meant, refused when they lie; conversion."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvz.errors import AlreadyExists, Cancelled, NoSpace, StorageError
from pyvz.image import convert, identity
from pyvz.image.check import check
from pyvz.image.delta import MAX_CLUSTERS, layer, stack, stack_of
from pyvz.image.descriptor import EXPANDED, NO_PARENT, TOP_GUID, Descriptor, Image, Shot
from pyvz.image.digest import digest
from pyvz.model.task import NoProgress

QUIET = NoProgress()
CLUSTER = 32 << 10  # the smallest: quick tests
MIB = 1 << 20

Clusters = dict[int, int]  # cluster -> the byte that it is full of; 0 is data too


def thin(path: Path, clusters: Clusters, *, version: int = 2, count: int = 12) -> Path:
    """An image by the published format, its clusters in the order of the mapping."""
    magic = b"WithoutFreeSpace" if version == 1 else b"WithouFreSpacExt"
    sectors = CLUSTER // 512
    head = magic + struct.pack(
        "<5IQ3IQ", 2, 1, 1, sectors, count, count * sectors, 0, sectors, 0, 0
    )
    bat = [0] * count
    for number, index in enumerate(clusters, start=1):
        bat[index] = number * (sectors if version == 1 else 1)
    body = b"".join(bytes([value]) * CLUSTER for value in clusters.values())
    path.write_bytes((head + struct.pack(f"<{count}I", *bat)).ljust(CLUSTER, b"\0") + body)
    return path


def model(layers: list[Clusters], count: int = 12) -> bytes:
    """What a stack must read as."""
    merged: Clusters = {}
    for each in layers:
        merged |= each
    return b"".join(bytes([merged.get(index, 0)]) * CLUSTER for index in range(count))


def patch(path: Path, at: int, value: int, kind: str = "<I") -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(kind, value))


clusters_of = st.dictionaries(st.integers(0, 11), st.integers(0, 255), max_size=12)


@settings(max_examples=10, deadline=None)
@given(
    layers=st.lists(clusters_of, min_size=1, max_size=4),
    version=st.sampled_from([1, 2]),
    raw=st.booleans(),
)
def test_a_stack_reads_as_it_was_written_and_converts_to_the_same(
    tmp_path_factory: pytest.TempPathFactory, layers: list[Clusters], version: int, raw: bool
) -> None:
    home = tmp_path_factory.mktemp("stack")
    paths = [thin(home / f"{number}", each, version=version) for number, each in enumerate(layers)]
    if raw:
        paths[0].write_bytes(model(layers[:1]))
    with stack(paths, raw_base=raw) as disk:
        wanted = model(layers)
        assert disk.read(0, len(wanted) + 5) == wanted
        assert disk.read(CLUSTER - 3, 7) == wanted[CLUSTER - 3 :][:7]
        covered = bytearray(len(wanted))
        for offset, length in disk.data():
            covered[offset : offset + length] = disk.read(offset, length)
        assert covered == wanted
        checksums = {
            digest(disk, QUIET),
            convert.to_identity(disk, home / "identity", QUIET),
            convert.to_thin(disk, home / "v1", QUIET, version=1, cluster=CLUSTER),
            convert.to_thin(disk, home / "v2", QUIET),
            convert.to_raw(disk, home / "raw", QUIET),
        }
        assert len(checksums) == 1
    assert (home / "raw").read_bytes() == wanted
    for name in ("identity", "v1", "v2"):
        assert check(home / name).clean
        with stack([home / name]) as copy:
            assert copy.read(0, len(wanted)) == wanted


LIES = {
    "outside": (64, 500, "behind the end"),
    "in the table": (64 + 4 * 3, 0xFFFFFFFF, "behind the end"),
    "twice": (64 + 4 * 4, 1, "share"),
    "many clusters": (32, MAX_CLUSTERS + 1, "do"),
    "no clusters": (32, 0, "no size"),
    "cluster size": (28, 3, "cluster"),
    "cluster of nothing": (28, 0, "cluster"),
    "small size": (36, 8, "fit together"),
    "large size": (36, 0xFFFFFF, "fit together"),
    "conversion": (52, 2, "conversion"),
    "type": (16, 1, "type"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_or_table_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    at, value, words = LIES[name]
    image = thin(tmp_path / "root.hds", {0: 1, 5: 2})
    patch(image, at, value)
    with pytest.raises(StorageError, match=words), layer(image):
        pass


def test_an_entry_in_the_block_table_is_refused(tmp_path: Path) -> None:
    large = thin(tmp_path / "large", {}, version=1, count=200)
    patch(large, 64, 1)  # sector 1, and the table has 864 bytes
    with large.open("ab") as file:
        file.write(bytes(CLUSTER))
    with pytest.raises(StorageError, match="block table"), layer(large):
        pass


def test_clusters_that_overlap_are_refused(tmp_path: Path) -> None:
    image = thin(tmp_path / "root.hds", {0: 1, 5: 2}, version=1)
    patch(image, 64, CLUSTER // 512 + 8)
    with pytest.raises(StorageError, match="share"), layer(image):
        pass


@pytest.mark.parametrize("size", [0, 1, 63, 64, 100, CLUSTER - 1, CLUSTER, 2 * CLUSTER + 100])
def test_a_cut_off_file_is_refused(tmp_path: Path, size: int) -> None:
    image = thin(tmp_path / "root.hds", {0: 1, 5: 2})
    os.truncate(image, size)
    with pytest.raises(StorageError), layer(image):
        pass
    if size >= 64:
        assert check(image).errors


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_changed_image_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    image = thin(tmp_path_factory.mktemp("fuzz") / "root.hds", {3: 7, 1: 9})
    for _ in range(data.draw(st.integers(1, 3))):
        patch(image, data.draw(st.integers(0, 110)), data.draw(st.integers(0, 255)), "<B")
    try:
        with stack([image]) as disk:
            for _ in zip(range(100), disk.data(), strict=False):
                pass
            disk.read(0, MIB)
    except StorageError:
        pass
    image.unlink()


def test_layers_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    small = thin(tmp_path / "small", {0: 1})
    with stack([small]) as disk:
        convert.to_thin(disk, tmp_path / "large", QUIET, cluster=MIB)
    with pytest.raises(StorageError, match="different sizes"), stack([tmp_path / "large", small]):
        pass
    with pytest.raises(StorageError), stack([]):
        pass
    odd = tmp_path / "odd"
    odd.write_bytes(b"abc")
    with pytest.raises(StorageError, match="no raw disk"), stack([odd], raw_base=True):
        pass


def test_a_described_disk_is_read_and_must_be_as_large_as_it_says(tmp_path: Path) -> None:
    one = "{11111111-1111-4111-8111-111111111111}"
    thin(tmp_path / "a", {0: 1, 1: 1})
    thin(tmp_path / "b", {1: 2})
    disk = Descriptor(
        12 * CLUSTER,
        blocksize=CLUSTER,
        images=(Image(one, "a"), Image(TOP_GUID, "b")),
        snapshots=(Shot(one, NO_PARENT), Shot(TOP_GUID, one)),
        mode=EXPANDED,
    )
    with stack_of(tmp_path, disk) as found:
        assert found.read(0, 3 * CLUSTER) == model([{0: 1, 1: 2}], 3)
    with stack_of(tmp_path, disk, one) as found:
        assert found.read(0, 3 * CLUSTER) == model([{0: 1, 1: 1}], 3)
    wrong = Descriptor(1 << 30, blocksize=CLUSTER, images=disk.images, snapshots=disk.snapshots)
    with pytest.raises(StorageError, match="description"), stack_of(tmp_path, wrong):
        pass
    (tmp_path / "b").unlink()
    (tmp_path / "b").symlink_to("/etc/passwd")
    with pytest.raises(StorageError, match="link"), stack_of(tmp_path, disk):
        pass


class Cancelling(NoProgress):
    """Cancels at the step number `at`."""

    def __init__(self, at: int) -> None:
        self.left = at

    def stage(self, text: str) -> None:
        self.advance(0)

    def advance(self, done: int, total: int | None = None, *, unit: str = "B") -> None:
        self.left -= 1
        if self.left < 0:
            raise Cancelled("called off")


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("form", ["to_identity", "to_thin", "to_raw"])
def test_a_cancelled_conversion_leaves_nothing(tmp_path: Path, form: str, step: int) -> None:
    source = thin(tmp_path / "source", {0: 1, 11: 2})
    with stack([source]) as disk, pytest.raises(Cancelled):
        getattr(convert, form)(disk, tmp_path / "target", Cancelling(step))
    assert os.listdir(tmp_path) == ["source"]


def test_nothing_is_replaced_and_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = thin(tmp_path / "source", {0: 1})
    with stack([source]) as disk:
        with pytest.raises(AlreadyExists):
            convert.to_raw(disk, source, QUIET)

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", full)
            for form in (convert.to_raw, convert.to_thin, convert.to_identity):
                with pytest.raises(NoSpace):
                    form(disk, tmp_path / "target", QUIET)
    assert os.listdir(tmp_path) == ["source"]


def test_what_reads_back_differently_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = thin(tmp_path / "source", {0: 1, 3: 1})
    lose = convert.write_at

    def losing(fd: int, data: bytes, offset: int) -> None:
        lose(fd, bytes(len(data)) if len(data) >= CLUSTER else data, offset)

    monkeypatch.setattr(convert, "write_at", losing)
    with stack([source]) as disk, pytest.raises(StorageError, match="read back"):
        convert.to_raw(disk, tmp_path / "target", QUIET)
    assert os.listdir(tmp_path) == ["source"]


def test_version_1_holds_two_tebibytes(tmp_path: Path) -> None:
    identity.create(tmp_path / "large", (2 << 40) + MIB, reserve=16 * MIB)
    with stack([tmp_path / "large"]) as disk:
        assert list(disk.data()) == []
        with pytest.raises(StorageError, match="too many"):
            convert.to_thin(disk, tmp_path / "v1", QUIET, version=1)
        convert.to_thin(disk, tmp_path / "v2", QUIET)
    assert (tmp_path / "v2").stat().st_size <= 9 * MIB


def test_a_check_repairs_what_costs_no_data(tmp_path: Path) -> None:
    image = thin(tmp_path / "root.hds", {0: 1, 5: 2})
    assert check(image).clean
    patch(image, 44, 0x746F6E59)
    with image.open("ab") as file:
        file.write(bytes(CLUSTER + 9))
    found = check(image)
    assert found.in_use
    assert found.leaks
    assert found.errors == ()
    assert len(check(image, repair=True).repaired) == 2
    assert check(image) == check(image, repair=True)
    assert check(image).clean
    patch(image, 64 + 4 * 5, 1)
    before = image.read_bytes()
    assert check(image, repair=True).errors
    assert image.read_bytes() == before
