"""Clients of other machines: TLS with certificates of libvirt's places, TCP, ssh."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from pyvz.store.paths import Paths
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("root", "program:virsh", "program:openssl")

SSHD = "/usr/sbin/sshd"


class Authority:
    """A certificate authority, and what it signs, by openssl."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        self.cert, self.key = place / "cacert.pem", place / "cakey.pem"
        self._run("req", "-x509", *self._new(self.key), "-subj", "/CN=ca", "-out", self.cert)

    def sign(self, name: str, cert: Path, key: Path) -> None:
        cert.parent.mkdir(parents=True, exist_ok=True)
        key.parent.mkdir(parents=True, exist_ok=True)
        request, names = self.place / "request", self.place / "names"
        names.write_text(f"subjectAltName=DNS:{name}\n")
        self._run("req", *self._new(key), "-subj", f"/CN={name}", "-out", request)
        self._run(
            "x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self.key, "-CAcreateserial",
            "-extfile", names, "-out", cert,
        )  # fmt: skip

    def client(self, name: str, trusted: Path) -> Path:
        """Make a directory as a client's pkipath wants it."""
        place = self.place / name
        self.sign(name, place / "clientcert.pem", place / "clientkey.pem")
        shutil.copy(trusted, place / "cacert.pem")
        return place

    @staticmethod
    def _new(key: Path) -> tuple[str | Path, ...]:
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key)

    @staticmethod
    def _run(*words: str | Path) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=200)


@pytest.fixture
def ports() -> tuple[int, int]:
    """Two ports that are free just now."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@pytest.fixture
def authority(world: World, tmp_path: Path, ports: tuple[int, int]) -> Authority:
    """The node's authority; the daemon of the node listens to the network."""
    made = Authority(tmp_path / "ca")
    pki = world.root / "etc/pki"
    made.sign("localhost", pki / "libvirt/servercert.pem", pki / "libvirt/private/serverkey.pem")
    (pki / "CA").mkdir()
    shutil.copy(made.cert, pki / "CA/cacert.pem")
    conf = Paths(world.root).etc / "vz.conf"
    conf.parent.mkdir(parents=True, exist_ok=True)
    tls, tcp = ports
    conf.write_text(
        f'LIBVIRT_TLS="127.0.0.1:{tls}"\nLIBVIRT_TCP="{tcp}"\nLIBVIRT_CLIENTS="admin-* boss"\n'
    )
    world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1")
    return made


def virsh(uri: str, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        ["virsh", "-q", "-c", uri, *words],
        env={**os.environ, "LC_ALL": "C", "HOME": "/nonexistent"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stderr


def test_certificates(
    world: World, authority: Authority, ports: tuple[int, int], tmp_path: Path
) -> None:
    def uri(place: Path) -> str:
        return f"vz+tls://localhost:{ports[0]}/system?pkipath={place}"

    admin = uri(authority.client("admin-1", authority.cert))
    assert "ct1" in virsh(admin, "list", "--all")
    virsh(admin, "start", "ct1")
    assert world.run("prlctl", "status", "ct1").split()[-1] == "running"
    virsh(admin, "destroy", "ct1")
    # One that the node's authority has not signed, and one that vz.conf does not name.
    stranger = Authority(tmp_path / "other").client("boss", authority.cert)
    virsh(uri(stranger), "list", code=1)
    virsh(uri(authority.client("guest", authority.cert)), "list", code=1)
    assert "ct1" in virsh(admin, "list", "--all")
    tcp = f"vz+tcp://127.0.0.1:{ports[1]}/system"
    assert "ct1" in virsh(tcp, "list", "--all")
    # Who never says a word, or no word of TLS, is nobody's trouble.
    with socket.create_connection(("127.0.0.1", ports[0])) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert "ct1" in virsh(admin, "list", "--all")


@pytest.fixture
def sshd(world: World, tmp_path: Path, ports: tuple[int, int]) -> Iterator[str]:
    """A real sshd, for which the node's sockets are where libvirt's helper looks for them.

    Yields the end of an URI that reaches it.
    """
    world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1")
    place = tmp_path / "ssh"
    place.mkdir(mode=0o700)
    for name in ("host", "key"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name]
        subprocess.run(argv, check=True, timeout=200)
    config = place / "config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{ports[0]}\nHostKey {place}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {place}/key.pub\nStrictModes no\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\n"
    )
    sockets = world.root / "run/libvirt"
    script = (
        "mount -t tmpfs tmpfs /run && mkdir /run/libvirt /run/sshd && "
        f"mount --bind {sockets} /run/libvirt && exec {SSHD} -D -e -f {config}"
    )
    argv = ["unshare", "-m", "--propagation", "slave", "sh", "-ec", script]
    with ExitStack() as undo:
        server = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        undo.callback(server.wait, 120)
        undo.callback(server.terminate)
        _await_port(ports[0])
        yield f"root@127.0.0.1:{ports[0]}/system?keyfile={place}/key&no_verify=1&no_tty=1"


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.1)
        else:
            return


@pytest.mark.requires("sshd", "program:virt-ssh-helper")
def test_ssh_with_the_helper(sshd: str) -> None:
    assert "ct1" in virsh(f"vz+ssh://{sshd}", "list", "--all")


@pytest.mark.requires("sshd", "program:nc")
def test_ssh_without_the_helper(world: World, sshd: str) -> None:
    place = world.root / "run/libvirt/virtvzd-sock"
    assert "ct1" in virsh(f"vz+ssh://{sshd}&proxy=netcat&socket={place}", "list", "--all")
