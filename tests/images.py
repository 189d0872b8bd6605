"""Shared file trees for tests: a Debian 12 with systemd, and a tiny one of busybox.

A plugin module: tests/conftest.py names it in ``pytest_plugins``.  Both fixtures last for the
whole run; a test that changes a tree works on a copy of its own.

/var/cache/pyvz-tests/debian-12-x86_64-<key>.tar.zst   key: a hash of what goes in; built once
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
CACHE = Path("/var/cache/pyvz-tests")
BUSYBOX = Path("/bin/busybox")

INITTAB = """\
::sysinit:/bin/hostname -F /etc/hostname
::respawn:/bin/sleep 1000
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/sync
"""

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""


def run(*argv: str | os.PathLike[str], timeout: float = 600) -> str:
    """Run a program; its last words become the error."""
    done = subprocess.run(
        argv,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{argv[0]} failed: {done.stderr[-3000:]}")
    return done.stdout


def key(*parts: str) -> str:
    """A short name for everything that decides what a cached file holds."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of one cache entry: two runs at once build it once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def debian_mirror() -> list[str]:
    """The mirror that the node's own apt uses, as an argument; nothing on another system."""
    with contextlib.suppress(RuntimeError, FileNotFoundError):
        # fmt: off
        found = run("apt-get", "indextargets", "--format", "$(REPO_URI)",
                    "Created-By: Packages", "Origin: Debian", "Component: main").split()
        # fmt: on
        for uri in found:
            if "security" not in uri:
                return [uri]
    return []


def debian_packages(release: int = 12) -> list[str]:
    """What our own template of Debian installs."""
    folder = REPO / f"templates/debian/{release}/x86_64/config/os/default"
    lines = (folder / "packages").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def build_debian(target: Path, packages: list[str], suite: str = "bookworm") -> None:
    """A root file system as a compressed tar, at TARGET by rename."""
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="debian.new.") as work:
        made = Path(work) / "root.tar"
        # fmt: off
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}",
            '--aptopt=Acquire::Retries "3"', suite, made, *debian_mirror(), timeout=1200)
        run("zstd", "--quiet", "-T0", "-3", "--rm", made)
        # fmt: on
        made.with_suffix(".tar.zst").rename(target)


def debian_of(release: int, *more: str) -> Path:
    """A Debian of another release, or with more packages; RuntimeError when it cannot be had."""
    packages = [*debian_packages(release), *more]
    suite = {11: "bullseye", 12: "bookworm", 13: "trixie"}[release]
    name = f"debian-{release}-x86_64-{key('1', *packages)}"
    target = CACHE / f"{name}.tar.zst"
    with locked(name):
        if not target.exists():
            build_debian(target, packages, suite)
    return target


@pytest.fixture(scope="session")
def debian_tar() -> Path:
    """A Debian 12 root file system with systemd, as .tar.zst with numeric owners."""
    packages = debian_packages()
    target = CACHE / f"debian-12-x86_64-{key('1', *packages)}.tar.zst"
    with locked("debian-12-x86_64"):
        if not target.exists():
            build_debian(target, packages)
    return target


def make_busybox(root: Path) -> None:
    """A root file system in which busybox is everything, also init."""
    if not BUSYBOX.exists():
        pytest.fail("busybox-static is not installed (script/bootstrap --dev)")
    for name in ("bin", "sbin", "usr/bin", "usr/sbin", "dev", "proc", "sys", "run", "root", "etc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, mode in (("tmp", 0o1777), ("var/tmp", 0o1777)):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    (root / "bin/busybox").write_bytes(BUSYBOX.read_bytes())
    (root / "bin/busybox").chmod(0o755)
    for line in run(BUSYBOX, "--list-full").split():
        link = root / line
        if line != "bin/busybox" and link.parent.is_dir():
            link.symlink_to("/bin/busybox")
    if not (root / "sbin/init").is_symlink():
        (root / "sbin/init").symlink_to("/bin/busybox")
    for name, text in (
        ("inittab", INITTAB),
        ("passwd", PASSWD),
        ("group", "root:x:0:\nnogroup:x:65534:\n"),
        ("shadow", "root:*:19000:0:99999:7:::\n"),
        ("hostname", "busybox\n"),
        ("os-release", 'ID=busybox\nPRETTY_NAME="busybox"\n'),
    ):
        (root / "etc" / name).write_text(text)
    (root / "etc/shadow").chmod(0o600)


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of busybox with a working init; read-only for tests, copy it to change it."""
    root = tmp_path_factory.mktemp("busybox") / "root"
    root.mkdir()
    root.chmod(0o755)
    make_busybox(root)
    return root


@pytest.fixture(scope="session")
def busybox_tar(busybox_root: Path) -> Path:
    """The same tree as a .tar.zst."""
    target = busybox_root.parent / "busybox.tar.zst"
    # fmt: off
    run("tar", "--create", "--zstd", "--numeric-owner", "--owner=0", "--group=0",
        "--file", target, "--directory", busybox_root, ".")
    # fmt: on
    return target
