"""An overlay on its way to another node: its layers, as they are, in archives of what changed."""

from __future__ import annotations

import functools
import mmap
import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import places
from pyvz.errors import CommandFailed, StorageError, UsageError
from pyvz.linux import increments, mount
from pyvz.model.task import NoProgress
from pyvz.storage.overlay import TEMPLATES, Driver
from pyvz.storage.streams import StreamSink, StreamSource

pytestmark = pytest.mark.requires("root")

GUIDS = ("{91111111-1111-1111-1111-111111111111}", "{11111111-1111-1111-1111-111111111111}")


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """An archive of a small tree."""
    tree = tmp_path / "template"
    for name in ("etc/one", "etc/two", "usr/lib/three"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    with tarfile.open(tmp_path / "t.plain.tar.gz", "w:gz") as archive:
        archive.add(tree, ".")
    return tmp_path / "t.plain.tar.gz"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "root"
    mount.umount(tmp_path / "root")


def made(driver: Driver, place: Path, template: Path) -> Path:
    home = place / "home"
    home.mkdir(parents=True)
    driver.create(home, size=None, source=template, progress=NoProgress())
    return home


def carried(source: StreamSource, sink: StreamSink, *, still: bool = False) -> int:
    """Bring one round from the one to the other; returns how many streams it had."""
    count = 0
    for each in source.round(still=still):
        with each as pipe:
            sink.take(functools.partial(_copy, pipe))
        count += 1
    return count


def _copy(source: int, target: int) -> None:
    with open(source, "rb", closefd=False) as one, open(target, "wb", closefd=False) as other:
        shutil.copyfileobj(one, other)


def shown(driver: Driver, home: Path, root: Path) -> dict[str, str]:
    """The files of a disk."""
    driver.mount(home, root)
    try:
        files = (path for path in root.rglob("*") if path.is_file())
        return {os.fspath(path.relative_to(root)): path.read_text() for path in files}
    finally:
        driver.umount(home, root)


def test_layers_arrive_as_they_are(tmp_path: Path, template: Path, root: Path) -> None:
    """With snapshots, while it is mounted and written to; the template is one for all."""
    driver = Driver()
    home = made(driver, tmp_path / "here", template)
    driver.mount(home, root)
    (root / "file").write_text("first")
    driver.snapshot(home, GUIDS[0])
    (root / "etc/one").unlink()  # a white-out
    shutil.rmtree(root / "usr")
    (root / "usr").mkdir()  # opaque
    (root / "etc").rename(root / "moved")  # a redirection
    driver.snapshot(home, GUIDS[1])
    there = tmp_path / "there"
    (new := there / "new").mkdir(parents=True)
    with driver.send_streams(home) as source, driver.receive_streams(new, None) as sink:
        assert carried(source, sink) == 4
        (root / "file").unlink()
        (root / "moved/two").write_text("written")
        (root / "later").write_text("later")
        assert carried(source, sink) == 1
        (root / "later").rename(root / "last")
        source.arm()
        assert carried(source, sink, still=True) == 1
    driver.umount(home, root)
    assert sorted(path.name for path in new.iterdir()) == [
        ".ve.layout", "overlay", "overlay.snapshots",
    ]  # fmt: skip
    now = shown(driver, home, root)
    assert now == {"moved/two": "written", "last": "later"}
    assert shown(driver, new, root) == now
    (again := there / "again").mkdir()
    with driver.send_streams(home) as source, driver.receive_streams(again, None) as sink:
        carried(source, sink, still=True)
    assert len([path for path in (there / TEMPLATES).iterdir() if path.is_dir()]) == 1
    for guid in GUIDS:
        for each in (home, new, again):
            driver.switch(each, guid)
        assert shown(driver, home, root) == shown(driver, new, root) == shown(driver, again, root)
    assert "moved/two" in shown(driver, new, root)
    for each in (home, new, again):
        driver.remove(each, NoProgress())
    driver.release(there)
    assert sorted(path.name for path in there.iterdir()) == ["again", "new"]


def _archive(folder: Path, *names: str) -> Path:
    """An archive with directories, and links where a name has one (name>target)."""
    path = folder / "wrong.tar"
    with tarfile.open(path, "w") as archive:
        for each in names:
            name, _, target = each.partition(">")
            member = tarfile.TarInfo(name)
            member.type = tarfile.SYMTYPE if target else tarfile.DIRTYPE
            member.linkname, member.mode = target, 0o755
            archive.addfile(member)
    return path


@pytest.mark.parametrize(
    "names",
    [
        ("upper",),
        ("upper", "template-a", "template-b"),
        ("template-a", "upper>/etc"),
        ("template-a", "upper", "../out"),
        ("template-a", "upper", "other"),
        ("template-..", "upper"),
    ],
)
def test_what_is_no_disk_leaves_nothing(tmp_path: Path, names: tuple[str, ...]) -> None:
    new = tmp_path / "pool/new"
    new.mkdir(parents=True)
    wrong = _archive(tmp_path, *names)

    def feed(target: int) -> None:
        with wrong.open("rb") as source, open(target, "wb", closefd=False) as sink:
            shutil.copyfileobj(source, sink)

    with (
        pytest.raises((CommandFailed, StorageError, UsageError)),
        Driver().receive_streams(new, None) as sink,
    ):
        sink.take(feed)
    assert list(new.iterdir()) == []
    assert [path.name for path in (tmp_path / "pool").iterdir() if path.name != "new"] == []


@pytest.mark.requires("loop", "btrfs")
def test_a_page_that_is_mapped_and_written_to_is_seen(tmp_path: Path) -> None:
    """A dirty page is written to without a fault, and so without another time of the file."""
    with places.file_system("btrfs", tmp_path / "pool", 512 << 20) as pool, ExitStack() as stack:
        (tree := pool / "tree").mkdir()
        (copy := pool / "copy").mkdir()
        file = stack.enter_context((tree / "file").open("wb+"))
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
        mapped = stack.enter_context(mmap.mmap(file.fileno(), 4096))
        mapped[0] = 1
        time.sleep(2.2)  # how far back the next archive looks for files that changed
        writer = stack.enter_context(increments.Writer(tmp_path / "seen"))
        _apply(writer, tree, copy, still=False)
        mapped[1] = 2
        _apply(writer, tree, copy, still=True)
        assert (copy / "file").read_bytes()[:2] == b"\1\2"


def _apply(writer: increments.Writer, tree: Path, copy: Path, *, still: bool) -> None:
    with (
        writer.archive(tree, still=still, timeout=60.0) as pipe,
        increments.reading(copy) as tar,
    ):
        _copy(pipe, tar.stdin())
        tar.close()
        tar.ended(60.0)
