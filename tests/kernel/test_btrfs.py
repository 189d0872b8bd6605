"""Subvolumes that a guest makes inside its own: kept, brought back, removed, and its limit."""

from __future__ import annotations

import errno
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import places
from homes import request
from ploops import read, take_down, write
from pyvz.errors import CommandFailed, StorageError, Unsupported
from pyvz.linux import btrfs
from pyvz.model.task import NoProgress
from pyvz.operations import clone, provision, snapshot
from pyvz.storage.btrfs import Driver
from pyvz.storage.streams import StreamSink, StreamSource
from worlds import make_archive, make_node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

GUID = "{11111111-1111-1111-1111-111111111111}"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Path]:
    with places.file_system("btrfs", tmp_path / "pool", 512 << 20) as place:
        yield place


def subvolume(path: Path, text: str) -> Path:
    btrfs.create(path)
    (path / "file").write_text(text)
    return path


def test_nested_subvolumes_are_in_snapshots_and_clones(pool: Path) -> None:
    driver = Driver()
    home, other = pool / "home", pool / "other"
    home.mkdir()
    other.mkdir()
    driver.create(home, size=None, source=None, progress=NoProgress())
    (home / "subvol/dir").mkdir()
    outer = subvolume(home / "subvol/dir/outer", "one")
    inner = subvolume(outer / "inner", "one")
    driver.snapshot(home, GUID)
    kept = home / "subvol.snapshots" / GUID / "dir/outer"
    assert btrfs.is_subvolume(kept / "inner")
    for place in (kept, kept / "inner"):
        with pytest.raises(OSError, match="Read-only"):
            (place / "file").write_text("x")
    (inner / "file").write_text("two")
    btrfs.destroy(outer)
    driver.switch(home, GUID)
    assert (inner / "file").read_text() == (outer / "file").read_text() == "one"
    (inner / "file").write_text("writable")
    driver.clone(home, other, NoProgress())
    assert (other / "subvol/dir/outer/inner/file").read_text() == "writable"
    for each in (home, other):
        driver.remove(each, NoProgress())
        assert list(each.iterdir()) == []


def test_a_container_on_btrfs_has_snapshots(pool: Path, tmp_path: Path) -> None:
    node = make_node(pool)
    cache = node.paths.template / "cache"
    cache.mkdir(parents=True)
    archive = make_archive(tmp_path)
    (cache / archive.name).write_bytes(archive.read_bytes())
    env = provision.create(node, request(layout="btrfs"))
    try:
        write(node, "one")
        guid = snapshot.create(node, "ct1").guid
        write(node, "two")
        copy = clone.clone(node, "ct1", "ct2")
        assert snapshot.rows(node, "ct2") == []
        assert sorted(p.name for p in copy.home.iterdir() if "subvol" in p.name) == ["subvol"]
        snapshot.switch(node, "ct1", guid)
        assert read(node) == "one"
        snapshot.delete(node, "ct1", guid)
        assert not (env.home / "subvol.snapshots").exists()
    finally:
        take_down(pool)


def test_a_snapshot_that_fails_leaves_nothing(pool: Path) -> None:
    first = subvolume(pool / "first", "x")
    with pytest.raises(OSError, match="long") as caught:
        btrfs.snapshot(first, pool / ("n" * 300))
    assert caught.value.errno == errno.ENAMETOOLONG
    assert [entry.name for entry in pool.iterdir()] == ["first"]
    with pytest.raises(FileExistsError):
        btrfs.snapshot(first, first)
    assert (first / "file").read_text() == "x"


def test_snapshots_share_on_another_pool_what_they_share_here(pool: Path, tmp_path: Path) -> None:
    """A clone on another btrfs is sent by differences, not copied once for every snapshot."""
    driver = Driver()
    guids = [f"{{{n}1111111-1111-1111-1111-111111111111}}" for n in (9, 1, 5)]  # not as made
    home = pool / "home"
    home.mkdir()
    driver.create(home, size=None, source=None, progress=NoProgress())
    (home / "subvol/big").write_bytes(os.urandom(24 << 20))
    os.chown(home / "subvol/big", 12, 34)
    for number, guid in enumerate(guids):
        (home / "subvol/file").write_text(f"{number}")
        driver.snapshot(home, guid)
    (home / "subvol/file").write_text("now")
    with places.file_system("btrfs", tmp_path / "other", 512 << 20) as elsewhere:
        new = elsewhere / "new"
        new.mkdir()
        before = used(elsewhere)
        driver.clone(home, new, NoProgress())
        assert used(elsewhere) - before < 48 << 20  # four copies would be 96
        assert sorted(entry.name for entry in home.iterdir()) == [
            ".ve.layout", "subvol", "subvol.snapshots",
        ]  # fmt: skip
        assert sorted(entry.name for entry in new.iterdir()) == [
            ".ve.layout", "subvol", "subvol.snapshots",
        ]  # fmt: skip
        assert (new / "subvol/file").read_text() == "now"
        (new / "subvol/file").write_text("writable")
        assert (new / "subvol/big").stat().st_uid == 12
        for number, guid in enumerate(guids):
            kept = new / "subvol.snapshots" / guid
            assert (kept / "file").read_text() == f"{number}"
            with pytest.raises(OSError, match="Read-only"):
                (kept / "file").write_text("x")
        driver.switch(new, guids[0])
        assert (new / "subvol/file").read_text() == "0"
        back = pool / "back"  # what came by a stream goes on by one
        back.mkdir()
        driver.clone(new, back, NoProgress())
        assert (back / "subvol.snapshots" / guids[2] / "file").read_text() == "2"
        # A subvolume inside would be left out of a stream: then all is copied.
        (home / "subvol/dir").mkdir()
        subvolume(subvolume(home / "subvol/dir/inner", "inner") / "innermost", "innermost")
        whole = elsewhere / "whole"
        whole.mkdir()
        driver.clone(home, whole, NoProgress())
        assert (whole / "subvol/dir/inner/file").read_text() == "inner"
        assert btrfs.is_subvolume(whole / "subvol/dir/inner/innermost")
        assert (whole / "subvol/dir/inner/innermost/file").read_text() == "innermost"
        for each in (home, new, back, whole):
            driver.remove(each, NoProgress())
            assert list(each.iterdir()) == []


def used(place: Path) -> int:
    os.sync()
    space = os.statvfs(place)
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def _copy(source: int, target: int) -> None:
    with open(source, "rb", closefd=False) as one, open(target, "wb", closefd=False) as other:
        shutil.copyfileobj(one, other)


def carried(source: StreamSource, sink: StreamSink) -> int:
    """Bring one round from the one to the other; returns how many streams it had."""
    count = 0
    for each in source.round():
        with each as pipe:
            sink.take(functools.partial(_copy, pipe))
        count += 1
    return count


def _say(text: bytes, target: int) -> None:
    os.write(target, text)


def test_snapshots_travel_ahead_of_the_disk(pool: Path, tmp_path: Path) -> None:
    """As to another node: once each, in the order of their making, sharing what they share."""
    driver = Driver()
    guids = [f"{{{n}1111111-1111-1111-1111-111111111111}}" for n in (9, 1, 5)]
    home = pool / "home"
    home.mkdir()
    driver.create(home, size=None, source=None, progress=NoProgress())
    (home / "subvol/big").write_bytes(os.urandom(24 << 20))
    for number, guid in enumerate(guids):
        (home / "subvol/file").write_text(f"{number}")
        driver.snapshot(home, guid)
    driver.switch(home, guids[0])
    with places.file_system("btrfs", tmp_path / "other", 512 << 20) as elsewhere:
        new = elsewhere / "new"
        new.mkdir()
        before = used(elsewhere)
        with driver.send_streams(home) as source, driver.receive_streams(new, None) as sink:
            assert carried(source, sink) == 4
            (home / "subvol/file").write_text("now")
            assert carried(source, sink) == 1
        assert used(elsewhere) - before < 48 << 20
        assert [entry.name for entry in sorted(new.iterdir())] == [
            ".ve.layout", "subvol", "subvol.snapshots",
        ]  # fmt: skip
        assert (new / "subvol/file").read_text() == "now"
        for number, guid in enumerate(guids):
            driver.switch(new, guid)
            assert (new / "subvol/file").read_text() == f"{number}"
        driver.remove(new, NoProgress())
        # Neither a broken stream nor one of something else leaves anything.
        for wrong in (b"", b"btrfs-stream\0\1"):
            with (
                pytest.raises((CommandFailed, StorageError)),
                driver.receive_streams(new, None) as sink,
            ):
                sink.take(functools.partial(_say, wrong))
            assert list(new.iterdir()) == []
        subvolume(home / "subvol" / "inner", "x")
        with pytest.raises(Unsupported, match="subvolumes of its own"), driver.send_streams(home):
            pass
    assert sorted(entry.name for entry in home.iterdir()) == [
        ".ve.layout", "subvol", "subvol.snapshots",
    ]  # fmt: skip
