"""Pools and volumes by virsh: made, filled, read back, resized, wiped, deleted."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from networld import wait_for
from pyvz.gateway import frame
from pyvz.gateway.frame import REMOTE, VERSION, Frame, Status, Type
from pyvz.gateway.procedures import by_name
from pyvz.gateway.xdr import codec, pack, unpack
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("root", "program:virsh", "program:qemu-img")

MIB = 1 << 20


@pytest.fixture
def virsh(world: World) -> Virsh:
    world.run("prlctl", "list", "-a")  # the daemon
    return Virsh(world)


@pytest.fixture
def pool(virsh: Virsh, tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "images"
    virsh("pool-create-as", "images", "dir", "--target", os.fspath(place), "--build")
    yield place
    virsh("pool-destroy", "images")
    virsh("pool-undefine", "images")


def _words(text: str) -> str:
    return " ".join(text.split())


def test_the_life_of_a_pool(virsh: Virsh, tmp_path: Path) -> None:
    place = tmp_path / "deep" / "images"
    virsh("pool-define-as", "images", "dir", "--target", os.fspath(place))
    assert "images inactive no" in _words(virsh("pool-list", "--all"))
    assert "There is no directory" in virsh("pool-start", "images", code=1)
    virsh("pool-build", "images")
    virsh("pool-autostart", "images")
    virsh("pool-start", "images")
    assert "already active" in virsh("pool-start", "images", code=1)
    assert "images active yes" in _words(virsh("pool-list", "--autostart"))
    virsh("pool-refresh", "images")
    assert "still active" in virsh("pool-delete", "images", code=1)
    virsh("pool-destroy", "images")
    assert "images" not in virsh("pool-list")
    assert "not active" in virsh("vol-list", "images", code=1)
    (place / "file").touch()
    assert "not empty" in virsh("pool-delete", "images", code=1)
    (place / "file").unlink()
    virsh("pool-delete", "images")
    assert not place.exists()
    virsh("pool-undefine", "images")
    assert "images" not in virsh("pool-list", "--all")
    assert "it cannot be deleted" in virsh("pool-undefine", "default", code=1)


def test_volumes(virsh: Virsh, pool: Path) -> None:
    virsh("vol-create-as", "images", "a.qcow2", "16M", "--format", "qcow2")
    virsh("vol-create-as", "images", "b.raw", "8M", "--allocation", "4M")
    assert (pool / "b.raw").stat().st_blocks * 512 >= 4 * MIB
    assert "exists already" in virsh("vol-create-as", "images", "b.raw", "8M", code=1)
    virsh("vol-resize", "b.raw", "12M", "--pool", "images")
    virsh("vol-resize", "b.raw", "4M", "--delta", "--pool", "images")
    assert "16.00 MiB" in virsh("vol-info", "b.raw", "images")
    assert "say shrink" in virsh("vol-resize", "b.raw", "1M", "--pool", "images", code=1)
    virsh("vol-resize", "b.raw", "1M", "--shrink", "--pool", "images")
    virsh("vol-clone", "a.qcow2", "c.qcow2", "--pool", "images")
    file = pool / "wanted.xml"
    file.write_text(
        "<volume><name>d.raw</name><capacity unit='MiB'>20</capacity>"
        "<target><format type='raw'/></target></volume>"
    )
    virsh("vol-create-from", "images", os.fspath(file), "c.qcow2", "--inputpool", "images")
    assert (pool / "d.raw").stat().st_size == 20 * MIB
    for name in ("a.qcow2", "b.raw", "c.qcow2", "d.raw"):
        assert name in virsh("vol-list", "images")
        virsh("vol-delete", name, "--pool", "images")
        assert not (pool / name).exists()


def test_upload_and_download(virsh: Virsh, pool: Path, tmp_path: Path) -> None:
    data, back = tmp_path / "data", tmp_path / "back"
    data.write_bytes(random.Random(1).randbytes(3 * MIB + 17))
    virsh("vol-create-as", "images", "v", "4M")
    virsh("vol-upload", "v", os.fspath(data), "--pool", "images")
    virsh("vol-download", "v", os.fspath(back), "--pool", "images", "--length", str(3 * MIB + 17))
    assert back.read_bytes() == data.read_bytes()
    virsh("vol-download", "v", os.fspath(back), "--pool", "images", "--offset", str(MIB))
    assert back.read_bytes() == data.read_bytes()[MIB:] + bytes(MIB - 17)
    virsh("vol-wipe", "v", "--pool", "images")
    assert (pool / "v").read_bytes() == bytes(4 * MIB)
    assert "zero" in virsh("vol-wipe", "v", "--pool", "images", "--algorithm", "nnsa", code=1)
    words = ("vol-upload", "v", os.fspath(data), "--pool", "images", "--length", str(MIB))
    assert "More data than" in virsh(*words, code=1)
    assert (pool / "v").read_bytes()[: MIB // 2] == data.read_bytes()[: MIB // 2]


def test_sparse_streams(virsh: Virsh, pool: Path, tmp_path: Path) -> None:
    data, back = tmp_path / "data", tmp_path / "back"
    with data.open("wb") as file:
        file.truncate(100 * MIB)
        file.seek(30 * MIB)
        file.write(b"in the middle")
        file.truncate(100 * MIB)
    virsh("vol-create-as", "images", "v", "100M")
    words = ("--pool", "images", "--sparse")
    virsh("vol-upload", "v", os.fspath(data), *words)
    assert (pool / "v").stat().st_blocks * 512 < 4 * MIB
    virsh("vol-download", "v", os.fspath(back), *words)
    assert back.stat().st_blocks * 512 < 4 * MIB
    subprocess.run(["cmp", data, back], check=True)


def _held(world: World) -> int:
    """How many times vzd has an image of the pool open."""
    pid = int((world.root / "run/pyvz/vzd.lock").read_text())
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += "/images/v" in os.readlink(link)
    return found


def _client(virsh: Virsh, verb: str, file: str) -> subprocess.Popen[bytes]:
    words = ["virsh", "-q", "-c", virsh.uri, verb, "v", file, "--pool", "images"]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_clients_that_stop_or_die(world: World, virsh: Virsh, pool: Path, tmp_path: Path) -> None:
    """One that reads no further holds up nobody else; what they had open is given back."""
    virsh("vol-create-as", "images", "v", "64M")
    with (pool / "v").open("r+b") as file:
        file.write(random.Random(2).randbytes(64 * MIB))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    stopped = _client(virsh, "vol-download", os.fspath(fifo))  # nobody drains it
    try:
        wait_for(lambda: _held(world) == 1, 120)
        assert "v" in virsh("vol-list", "images")
        assert stopped.poll() is None
    finally:
        stopped.kill()
        stopped.wait()
        os.close(reader)
    wait_for(lambda: not _held(world), 120)
    writer = os.open(fifo, os.O_RDWR)
    dying = _client(virsh, "vol-upload", os.fspath(fifo))
    try:
        os.write(writer, bytes(MIB // 32))  # less than a pipe holds, and more would come
        wait_for(lambda: _held(world) == 1, 120)
    finally:
        dying.kill()
        dying.wait()
        os.close(writer)
    wait_for(lambda: not _held(world), 120)
    virsh("vol-delete", "v", "--pool", "images")


def test_what_is_refused(world: World, virsh: Virsh, pool: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"x")
    (pool / "link").symlink_to(data)
    assert "not found" in virsh("vol-download", "link", "/dev/null", "--pool", "images", code=1)
    virsh("vol-create-as", "images", "v", "1M")
    reader = Virsh(world, readonly=True)
    assert "v" in reader("vol-list", "images")
    # virsh refuses by itself; a client that does not is refused by us.
    assert _refused(world, "storage_vol_download")
    assert _refused(world, "storage_vol_upload")
    world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1")
    uuid = virsh("domuuid", "ct1")
    assert "prlctl" in virsh("vol-upload", uuid, os.fspath(data), "--pool", "default", code=1)


def _refused(world: World, name: str) -> bool:
    """Whether a client of the read-only socket is denied a stream."""
    volume = {"pool": "images", "name": "v", "key": "v"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(120)
        sock.connect(os.fspath(world.root / "run/libvirt/virtvzd-sock-ro"))
        _call(sock, "connect_open", {"name": "vz:///system", "flags": 1})
        arguments = {"vol": volume, "offset": 0, "length": 0, "flags": 0}
        answer = _call(sock, name, arguments)
    return answer.status is Status.ERROR and unpack(codec("error"), answer.payload)["code"] == 29


def _call(sock: socket.socket, name: str, arguments: dict[str, object]) -> Frame:
    procedure = by_name()[name]
    payload = pack(procedure.arguments, arguments)
    number = procedure.number
    sock.sendall(Frame(REMOTE, VERSION, number, Type.CALL, 1, Status.OK, payload).to_bytes())
    head = sock.recv(28, socket.MSG_WAITALL)
    words = [int.from_bytes(head[at : at + 4], "big") for at in range(0, 28, 4)]
    body = sock.recv(words[0] - 28, socket.MSG_WAITALL) if words[0] > 28 else b""
    assert words[0] <= frame.LIMIT
    return Frame(words[1], words[2], words[3], Type(words[4]), words[5], Status(words[6]), body)
