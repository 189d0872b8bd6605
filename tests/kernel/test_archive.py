"""linux/archive.py with the real programs."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time

import pytest

from pyvz.errors import Cancelled, NoSpace, TemplateError
from pyvz.linux import archive, mount
from pyvz.model.task import NoProgress


class Watched(NoProgress):
    """Remembers what it was told; calls it off after a number of reports."""

    def __init__(self, cancel_after: int | None = None) -> None:
        self.reports: list[tuple[int, int | None]] = []
        self.cancel_after = cancel_after

    def advance(self, done, total=None, *, unit="B"):
        self.reports.append((done, total))
        if self.cancel_after is not None and len(self.reports) > self.cancel_after:
            raise Cancelled("no")


@pytest.fixture
def tree(tmp_path):
    path = tmp_path / "tree"
    (path / "bin").mkdir(parents=True)
    (path / "bin/ping").write_bytes(os.urandom(300_000))
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(path / "bin/ping", "security.capability", capability)
    os.link(path / "bin/ping", path / "bin/ping6")
    os.chown(path / "bin", 1000, 4_000_000)
    (path / "bin/su").touch()
    (path / "bin/su").chmod(0o4755)
    (path / "link").symlink_to("/etc/passwd")
    os.mknod(path / "null", 0o20666, os.makedev(1, 3))
    os.mkfifo(path / "fifo")
    with open(path / "sparse", "wb") as file:
        file.truncate(50 << 20)
    if not subprocess.run(["which", "setfacl"], check=False, capture_output=True).returncode:
        subprocess.run(["setfacl", "-m", "u:77:r", path / "bin/su"], check=False)
    return path


@pytest.mark.parametrize("suffix", [".zst", ".lz4", ".gz", ".xz", ".bz2", ""])
def test_round_trip(tree, tmp_path, suffix):
    file = tmp_path / f"a.tar{suffix}"
    watched = Watched()
    archive.pack(tree, file, watched)
    assert watched.reports
    assert sorted(os.listdir(tmp_path)) == sorted([file.name, "tree"])
    out = tmp_path / "out"
    out.mkdir()
    watched = Watched()
    archive.verify(file, NoProgress())
    archive.unpack(file, out, watched)
    size = file.stat().st_size
    assert watched.reports[-1] == (size, size)
    assert (out / "bin").stat().st_gid == 4_000_000
    assert os.getxattr(out / "bin/ping", "security.capability")
    assert (out / "bin/ping").stat().st_nlink == 2
    assert (out / "bin/su").stat().st_mode == (tree / "bin/su").stat().st_mode
    assert os.listxattr(out / "bin/su") == os.listxattr(tree / "bin/su")
    assert os.readlink(out / "link") == "/etc/passwd"
    assert (out / "null").stat().st_rdev == os.makedev(1, 3)
    assert (out / "sparse").stat().st_blocks < 1000


def test_compression_is_told_by_content(tree, tmp_path):
    archive.pack(tree, tmp_path / "a.tar.gz", NoProgress())
    (tmp_path / "a.tar.gz").rename(tmp_path / "a.tar.zst")
    assert archive.compression_of(tmp_path / "a.tar.zst").name == "gzip"
    out = tmp_path / "out"
    out.mkdir()
    archive.unpack(tmp_path / "a.tar.zst", out, NoProgress())
    assert (out / "bin/ping").exists()
    (tmp_path / "text").write_text("hello")
    with pytest.raises(TemplateError, match="not an archive"):
        archive.unpack(tmp_path / "text", out, NoProgress())
    with pytest.raises(TemplateError, match="names no compression"):
        archive.pack(tree, tmp_path / "a.rar", NoProgress())


@pytest.mark.parametrize("suffix", [".zst", ".lz4", ".gz", ".xz", ""])
@pytest.mark.parametrize("harm", ["truncated", "altered"])
def test_damaged_archive_is_refused(tree, tmp_path, suffix, harm):
    if harm == "altered" and not suffix:
        pytest.skip("a plain tar has no checksum of its data")
    file = tmp_path / f"a.tar{suffix}"
    archive.pack(tree, file, NoProgress())
    data = bytearray(file.read_bytes())
    if harm == "truncated":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(TemplateError, match="damaged"):
        archive.verify(file, NoProgress())
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(TemplateError, match="damaged"):
        archive.unpack(file, out, NoProgress())


def test_hostile_members_stay_inside(tmp_path):
    """Names that climb, and a member below a link that an earlier member made."""
    file = tmp_path / "evil.tar"
    with tarfile.open(file, "w") as tar:
        link = tarfile.TarInfo("etc")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "victim")
        tar.addfile(link)
        for name in ("etc/passwd", "../climbed", str(tmp_path / "absolute")):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
    (tmp_path / "victim").mkdir()
    out = tmp_path / "out/deep"
    out.mkdir(parents=True)
    with pytest.raises(TemplateError):  # tar says so of ".."
        archive.unpack(file, out, NoProgress())
    assert os.listdir(tmp_path / "victim") == []
    assert not (tmp_path / "absolute").exists()
    assert not (tmp_path / "out/climbed").exists()


def test_cancelled_at_once(tree, tmp_path):
    file = tmp_path / "a.tar.zst"
    with pytest.raises(Cancelled):
        archive.pack(tree, file, Watched(0))
    assert os.listdir(tmp_path) == ["tree"]
    archive.pack(tree, file, NoProgress())
    out = tmp_path / "out"
    out.mkdir()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        archive.unpack(file, out, Watched(0))
    assert time.monotonic() - begun < 30


def test_full_disk(tree, tmp_path, short_root):
    file = tmp_path / "a.tar.zst"
    archive.pack(tree, file, NoProgress())
    mount.mount("pyvz-test", short_root, "tmpfs", data="size=100k")
    try:
        with pytest.raises(NoSpace):
            archive.unpack(file, short_root, NoProgress())
        with pytest.raises(NoSpace):
            archive.pack(tree, short_root / "b.tar.zst", NoProgress())
        assert not (short_root / "b.tar.zst").exists()
        assert not (short_root / ".b.tar.zst.part").exists()
    finally:
        mount.umount(short_root, timeout=60)


def test_exclude_and_mounts_below(tree, tmp_path):
    mount.mount("pyvz-test", tree / "bin", "tmpfs")
    try:
        (tree / "bin/on-top").touch()
        archive.pack(tree, tmp_path / "m.tar.zst", NoProgress(), exclude=["./link"])
    finally:
        mount.umount(tree / "bin", timeout=60)
    out = tmp_path / "out"
    out.mkdir()
    archive.unpack(tmp_path / "m.tar.zst", out, NoProgress())
    assert not (out / "link").is_symlink()
    assert os.listdir(out / "bin") == []
    assert (out / "sparse").exists()
