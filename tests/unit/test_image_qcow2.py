"""The tables of qcow2 images: read as they are meant, refused when they lie.

The images are written here by the published format (QEMU docs/interop/qcow2.txt), not by QEMU.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvz.errors import FileMissing, NotFound, StorageError
from pyvz.image import qcow2

CLUSTER = 4096
ENTRIES = CLUSTER // 8
COPIED = 1 << 63

Clusters = dict[int, int]  # cluster -> the byte that it is full of


class Image:
    """A small image: 4 KiB clusters, one L2 table for each state, snapshots of one name each."""

    def __init__(self, count: int = 40) -> None:
        self.count = count
        self.parts: list[bytes] = [b""]  # clusters of the file; the first is the header
        self.where: dict[int, int] = {}

    def add(self, raw: bytes) -> int:
        """Append whole clusters; return where they begin."""
        offset = len(self.parts) * CLUSTER
        raw = raw.ljust(-(-len(raw) // CLUSTER) * CLUSTER, b"\0")
        self.parts += [raw[at : at + CLUSTER] for at in range(0, len(raw), CLUSTER)]
        return offset

    def data(self, byte: int) -> int:
        """Return where a cluster full of BYTE is; each is there once, shared by all states."""
        if byte not in self.where:
            self.where[byte] = self.add(bytes([byte]) * CLUSTER)
        return self.where[byte]

    def table(self, clusters: Clusters) -> int:
        l2 = [0] * ENTRIES
        for index, byte in clusters.items():
            l2[index] = self.data(byte) | (COPIED if index % 2 else 0)
        where = self.add(struct.pack(f">{ENTRIES}Q", *l2))
        return self.add(struct.pack(">Q", where | COPIED))

    def write(self, path: Path, now: Clusters, snapshots: dict[str, Clusters]) -> Path:
        size = self.count * CLUSTER
        entries = b""
        for number, (name, clusters) in enumerate(snapshots.items(), 1):
            l1, text = self.table(clusters), name.encode()
            entry = struct.pack(">QIHHIIQII", l1, 1, len(str(number)), len(text), 0, 0, 0, 0, 16)
            entry += struct.pack(">QQ", 0, size) + str(number).encode() + text
            entries += entry.ljust(-(-len(entry) // 8) * 8, b"\0")
        l1, table = self.table(now), self.add(entries) if entries else 0
        head = struct.pack(
            ">4sIQIIQIIQQIIQ",
            *(b"QFI\xfb", 3, 0, 0, 12, size, 0, 1, l1, CLUSTER, 1, len(snapshots), table),
        )
        self.parts[0] = (head + struct.pack(">QQQII", 0, 0, 0, 4, 104)).ljust(CLUSTER, b"\0")
        path.write_bytes(b"".join(self.parts))
        return path


def content(clusters: Clusters, count: int = 40) -> bytes:
    return b"".join(bytes([clusters.get(index, 0)]) * CLUSTER for index in range(count))


states = st.dictionaries(st.integers(0, 39), st.integers(1, 255), max_size=12)


@given(now=states, old=states)
def test_states_read_and_differ_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, now: Clusters, old: Clusters
) -> None:
    path = Image().write(tmp_path_factory.mktemp("q") / "disk", now, {"one": old})
    with qcow2.image(path) as found:
        whole = {name: found.read(found.state(name), 0, 1 << 20) for name in (None, "one")}
        assert whole == {None: content(now), "one": content(old)}
        assert found.read(found.now, 4000, 5000) == content(now)[4000:9000]
        patched = bytearray(content(old))
        told = found.changed(found.state("one"), found.now)
        for start, length in told:
            patched[start : start + length] = content(now)[start : start + length]
        assert bytes(patched) == content(now)
        differ = [at for at in range(40) if now.get(at) != old.get(at)]
        assert sum(length for _, length in told) == len(differ) * CLUSTER
        assert found.changed(found.now, found.now) == []


def test_a_view_is_the_image_with_another_state_in_front(tmp_path: Path) -> None:
    path = Image().write(tmp_path / "disk", {1: 1}, {"one": {1: 2, 5: 3}})
    with qcow2.image(path) as found:
        header = found.view_header(found.state("one"))
    path.write_bytes(header + path.read_bytes()[len(header) :])
    with qcow2.image(path) as found:
        assert found.read(found.now, 0, 1 << 20) == content({1: 2, 5: 3})
        assert found.snapshots == ()
        with pytest.raises(NotFound):
            found.state("one")


@pytest.mark.parametrize(
    ("at", "value", "kind"),
    [
        (0, b"QFI\0", "not a qcow2"),
        (4, b"\0\0\0\2", "version 2"),
        (8, b"\0\0\0\0\0\0\0\x70", "based on another"),
        (20, b"\0\0\0\x09", "clusters"),
        (20, b"\0\0\0\x20", "clusters"),
        (24, b"\xff" * 8, "claims"),
        (24, b"\0" * 8, "claims"),
        (32, b"\0\0\0\1", "encrypted"),
        (36, b"\xff\xff\xff\xff", "table"),
        (40, b"\0\0\0\0\xff\xff\xf0\0", "not in the file"),
        (40, b"\0\0\0\0\0\0\x10\1", "not in the file"),
        (60, b"\xff\xff\xff\xff", "snapshots"),
        (64, b"\0\0\0\0\x7f\xff\xf0\0", "not in the file"),
        (72, b"\0\0\0\0\0\0\0\4", "data in another file"),
        (72, b"\0\0\0\0\0\0\0\2", "corrupt"),
        (72, b"\x80\0\0\0\0\0\0\0", "features"),
        (100, b"\0\0\xff\xff", "header"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, at: int, value: bytes, kind: str) -> None:
    path = Image().write(tmp_path / "disk", {1: 1}, {"one": {1: 2}})
    raw = bytearray(path.read_bytes())
    raw[at : at + len(value)] = value
    path.write_bytes(raw)
    with pytest.raises(StorageError, match=kind):
        qcow2.require(path)


def test_no_file_links_and_two_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(FileMissing):
        qcow2.require(tmp_path / "none")
    path = Image().write(tmp_path / "disk", {}, {"a": {}, "b": {}})
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(StorageError, match="symbolic link"):
        qcow2.require(tmp_path / "link")
    raw = path.read_bytes()
    at = raw.index(b"2b", CLUSTER)
    path.write_bytes(raw[:at] + b"2a" + raw[at + 2 :])
    with pytest.raises(StorageError, match="one name"):
        qcow2.require(path)


@settings(max_examples=300)
@given(data=st.data())
def test_a_changed_image_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever a byte becomes: an error of ours or some content, never another exception."""
    path = tmp_path_factory.mktemp("q") / "disk"
    raw = bytearray(Image().write(path, {1: 1, 7: 2}, {"one": {1: 3}, "two": {}}).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) - 1, 5000, 100]))])
    try:
        with qcow2.image(path) as found:
            for each in (found.now, *(snapshot.state for snapshot in found.snapshots)):
                if each.size <= 1 << 30:
                    found.changed(each, found.now)
                assert len(found.read(each, 0, 8192)) <= 8192
                found.view_header(each)
    except StorageError:
        pass
