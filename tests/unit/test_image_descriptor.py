"""DiskDescriptor.xml: what is read, what is written, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvz.errors import AlreadyExists, FileMissing, InvalidState, NotFound, StorageError, UsageError
from pyvz.image import descriptor
from pyvz.image.descriptor import (
    EXPANDED,
    NO_PARENT,
    PREALLOCATED,
    RAW,
    TOP_GUID,
    Descriptor,
    Image,
    Shot,
)

GOLDEN = Path(__file__).parent / "golden" / "DiskDescriptor.xml"
ONE = "{11111111-1111-4111-8111-111111111111}"
TWO = "{22222222-2222-4222-8222-222222222222}"
GIB = 1 << 30

guids = (
    st.uuids()
    .map(lambda value: "{" + str(value) + "}")
    .filter(lambda text: text not in (NO_PARENT, TOP_GUID))
)


@st.composite
def descriptors(draw: st.DrawFn) -> Descriptor:
    """A disk that came about by snapshots, deletions and switches."""
    mode = draw(st.sampled_from([EXPANDED, PREALLOCATED]))
    disk = Descriptor(draw(st.integers(1, 1 << 32)) * 512, mode=mode)
    for number, guid in enumerate(draw(st.lists(guids, max_size=8, unique=True))):
        disk = disk.with_snapshot(guid, f"root.hds.{guid}")
        shots = [shot.guid for shot in disk.snapshots if shot.guid != disk.top]
        match draw(st.integers(0, 3)):
            case 0:
                disk = disk.without_snapshot(draw(st.sampled_from(shots)))
            case 1:
                disk = disk.switched(draw(st.sampled_from(shots)), f"top{number}")
    return disk


@given(descriptors())
def test_a_descriptor_survives_writing_and_reading(disk: Descriptor) -> None:
    assert descriptor.parse(descriptor.to_xml(disk)) == disk
    assert disk.checked() == disk
    for shot in disk.snapshots:
        assert disk.chain(shot.guid)[-1].guid == shot.guid


def test_the_file_is_laid_out_as_ploop_does() -> None:
    disk = Descriptor(2 * GIB, mode=EXPANDED).with_delta(ONE, f"root.hds.{TWO}")
    assert descriptor.to_xml(disk).decode() == GOLDEN.read_text()
    assert descriptor.parse(GOLDEN.read_bytes()) == disk


def test_the_root_of_openvz_6_is_read() -> None:
    text = GOLDEN.read_text().replace(
        "<Virtuozzo_disk_image>", '<Parallels_disk_image Version="1.0">'
    )
    text = text.replace("Virtuozzo", "Parallels")
    assert descriptor.parse(text.encode()).disk_size == 2 * GIB


def test_raw_and_kept_values() -> None:
    disk = Descriptor(GIB, mode=RAW, max_delta_size=512, key="k<&>")
    assert descriptor.parse(descriptor.to_xml(disk)) == disk
    assert b"<Type>Plain</Type>" in descriptor.to_xml(disk)
    temporary = Descriptor(
        GIB,
        images=(Image(ONE, "a"), Image(TOP_GUID, "b")),
        snapshots=(Shot(ONE, NO_PARENT, "TemporaryZero"), Shot(TOP_GUID, ONE)),
    )
    assert descriptor.parse(descriptor.to_xml(temporary)) == temporary


def test_an_old_top_gets_the_constant_one() -> None:
    old = Descriptor(GIB, images=(Image(ONE, "a"),), snapshots=(Shot(ONE),), top=ONE)
    assert descriptor.parse(descriptor.to_xml(old)) == Descriptor(
        GIB, images=(Image(TOP_GUID, "a"),)
    )


def test_ids_are_taken_in_any_spelling() -> None:
    assert descriptor.normal_guid(ONE.upper()) == ONE
    assert descriptor.normal_guid(ONE[1:-1]) == ONE
    for wrong in ("", "{}", "1" * 32, ONE + "\n", "../" + ONE):
        with pytest.raises(UsageError):
            descriptor.normal_guid(wrong)


def test_snapshots_are_added_switched_and_deleted() -> None:
    disk = Descriptor(GIB).with_snapshot(ONE, "one").with_snapshot(TWO, "two")
    assert [image.file for image in disk.chain()] == ["one", "two", "root.hds"]
    back = disk.switched(ONE, "fresh")
    assert [image.file for image in back.chain()] == ["one", "fresh"]
    assert back.children(ONE) == (TWO, TOP_GUID)
    gone = back.without_snapshot(ONE)
    assert gone.shot(TWO).parent == NO_PARENT
    assert [image.file for image in gone.chain()] == ["fresh"]
    with pytest.raises(AlreadyExists):
        disk.with_snapshot(ONE, "x")
    with pytest.raises(InvalidState):
        disk.without_snapshot(TOP_GUID)
    with pytest.raises(NotFound):
        disk.switched("{33333333-3333-4333-8333-333333333333}", "x")
    with pytest.raises(StorageError):
        disk.with_snapshot("{33333333-3333-4333-8333-333333333333}", "two")


WRONG = {
    "outside": ("root.hds</File>", "../root.hds</File>"),
    "absolute": (">root.hds</File>", ">/etc/shadow</File>"),
    "dots": (">root.hds</File>", ">..</File>"),
    "itself": (">root.hds</File>", ">DiskDescriptor.xml</File>"),
    "no name": (">root.hds</File>", "></File>"),
    "same file": (f">root.hds.{TWO}</File>", ">root.hds</File>"),
    "same id": (f"<GUID>{ONE}</GUID>", f"<GUID>{TOP_GUID}</GUID>"),
    "circle": (f"<ParentGUID>{NO_PARENT}</ParentGUID>", f"<ParentGUID>{ONE}</ParentGUID>"),
    "unknown parent": (f"<ParentGUID>{NO_PARENT}</ParentGUID>", f"<ParentGUID>{TWO}</ParentGUID>"),
    "above the top": (
        f"<ParentGUID>{NO_PARENT}</ParentGUID>",
        f"<ParentGUID>{TOP_GUID}</ParentGUID>",
    ),
    "no id": (f"<GUID>{ONE}</GUID>", "<GUID>one</GUID>"),
    "no top": (f"<TopGUID>{TOP_GUID}</TopGUID>", f"<TopGUID>{TWO}</TopGUID>"),
    "size": ("<Disk_size>4194304<", "<Disk_size>4194305<"),
    "negative": ("<Disk_size>4194304<", "<Disk_size>-1<"),
    "huge": ("<Disk_size>4194304<", "<Disk_size>0xffffffffffffffff<"),
    "octal": ("<Disk_size>4194304<", "<Disk_size>020000000<"),
    "cluster": ("<Blocksize>2048<", "<Blocksize>2047<"),
    "cluster 0": ("<Blocksize>2048<", "<Blocksize>0<"),
    "part": ("<Start>0<", "<Start>2048<"),
    "type": ("<Type>Compressed<", "<Type>Encrypted<"),
    "root": ("Virtuozzo_disk_image", "html"),
    "missing": ("<Snapshots>", "<Snapshot>"),
    "parts": ("<Storage>", "<Storage></Storage><Storage>"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_together_is_refused(name: str) -> None:
    old, new = WRONG[name]
    text = GOLDEN.read_text()
    assert old in text
    with pytest.raises(StorageError):
        descriptor.parse(text.replace(old, new).encode())


BOMB = '<!DOCTYPE a [<!ENTITY l0 "lol">%s]><Virtuozzo_disk_image>&l9;</Virtuozzo_disk_image>'
LEVELS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))


@pytest.mark.parametrize(
    "raw",
    [
        (BOMB % LEVELS).encode(),
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><Virtuozzo_disk_image>&x;</Virtuozzo_disk_image>',
        b"",
        b"<a",
        b"\xff\xfe\x00",
        b'<?xml version="1.0" encoding="no-such"?><a/>',
        b"<a>" * 20000,
    ],
)
def test_bombs_and_garbage_are_refused(raw: bytes) -> None:
    with pytest.raises(StorageError):
        descriptor.parse(raw)


@settings(max_examples=200)
@given(data=st.data())
def test_a_changed_file_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(GOLDEN.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = descriptor.parse(bytes(raw))
    except StorageError:
        return
    assert found.checked() == found
    assert all("/" not in image.file for image in found.images)


def test_files_are_written_whole_and_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / descriptor.NAME
    with pytest.raises(FileMissing):
        descriptor.load(path)
    descriptor.save(path, Descriptor(GIB))
    assert descriptor.load(path) == Descriptor(GIB)
    path.chmod(0o600)
    descriptor.save(path, Descriptor(2 * GIB))
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [descriptor.NAME]
    link = tmp_path / "link.xml"
    link.symlink_to(path)
    with pytest.raises(StorageError, match="link"):
        descriptor.load(link)
    with pytest.raises(StorageError, match="link"):
        descriptor.save(link, Descriptor(GIB))
    path.write_bytes(b" " * (2 << 20))
    with pytest.raises(StorageError, match="more than"):
        descriptor.load(path)
