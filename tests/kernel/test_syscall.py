"""linux/syscall.py against the running kernel."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvz.linux import namespace, syscall

ALLOW = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)


def in_child(work: Callable[[], int], flags: int = syscall.CLONE_NEWUSER) -> int:
    """Run work in a child with its own namespaces; its result is the exit status."""
    pid, pidfd = syscall.clone3(flags)
    if pid == 0:
        try:
            code = work()
        except OSError as error:
            code = error.errno or 255
        except BaseException:  # noqa: BLE001
            code = 254
        os._exit(code)
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_errors_name_the_call_and_the_file() -> None:
    with pytest.raises(FileNotFoundError, match="open_tree") as caught:
        syscall.open_tree(syscall.AT_FDCWD, "/nothing/there")
    assert caught.value.filename == "/nothing/there"
    with pytest.raises(OSError, match="umount"):
        syscall.umount2("/nothing/there")
    with pytest.raises(OSError, match="seccomp"):
        syscall.seccomp_load(b"123")


def test_clone3_gives_a_pidfd_that_tells_the_exit() -> None:
    pid, pidfd = syscall.clone3(0)
    if pid == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    with contextlib.suppress(OSError):  # older than 6.13
        assert syscall.pidfd_info(pidfd).exit_status in {7 << 8, None}
    with pytest.raises(ProcessLookupError):
        syscall.pidfd_send_signal(pidfd, 0)
    os.close(pidfd)


def test_every_namespace_at_once() -> None:
    flags = 0
    for kind, flag in namespace.KINDS.items():
        if kind != "cgroup":
            flags |= flag
    mine = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in namespace.KINDS}

    def compare() -> int:
        now = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in namespace.KINDS}
        return sum(now[kind] != mine[kind] for kind in mine)

    assert in_child(compare, flags & ~syscall.CLONE_NEWPID) == 6
    assert in_child(os.getpid, flags) == 1


def test_openat2_stays_in_the_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to("/../../../etc/passwd")
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/etc/passwd").write_text("inside")
    root = os.open(tmp_path / "root", os.O_PATH)
    fd = syscall.openat2(root, "link", os.O_RDONLY, resolve=syscall.RESOLVE_IN_ROOT)
    assert os.read(fd, 100) == b"inside"
    with pytest.raises(OSError, match="openat2"):
        syscall.openat2(root, "../x", os.O_RDONLY, resolve=syscall.RESOLVE_BENEATH)
    os.close(fd)
    os.close(root)


def test_prctl_and_capabilities() -> None:
    def work() -> int:
        syscall.set_no_new_privs()
        syscall.set_parent_death_signal(signal.SIGKILL)
        syscall.drop_bounding(21)
        if syscall.bounding_has(21):
            return 1
        syscall.capset(1, 1, 0)
        status = Path("/proc/self/status").read_text()
        return 0 if "CapEff:\t0000000000000001" in status else 2

    assert in_child(work) == 0
    with pytest.raises(OSError, match="prctl"):
        syscall.bounding_has(63)


def test_seccomp() -> None:
    def work() -> int:
        syscall.seccomp_load(ALLOW)
        return 0 if "Seccomp:\t2" in Path("/proc/self/status").read_text() else 1

    assert in_child(work) == 0


def test_hostname_and_its_limit() -> None:
    def work() -> int:
        syscall.sethostname("inside")
        syscall.setdomainname("domain")
        if os.uname().nodename != "inside":
            return 1
        syscall.sethostname("x" * 65)
        return 2

    assert in_child(work, syscall.CLONE_NEWUSER | syscall.CLONE_NEWUTS) == 22


def test_detached_mounts_and_pivot_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    def work() -> int:
        syscall.mount(None, "/", None, syscall.MS_REC | syscall.MS_PRIVATE)
        tree = namespace.detached_tree(os.fspath(tmp_path), attributes=("ro", "nosuid"))
        scratch = syscall.detached_mount("tmpfs", syscall.MOUNT_ATTR_NODEV)
        syscall.move_mount(tree, "", syscall.AT_FDCWD, os.fspath(tmp_path))
        os.chdir(tmp_path)
        syscall.pivot_root(".", ".")
        syscall.umount2(".", syscall.MNT_DETACH)
        os.chdir("/")
        if os.listdir("/") != ["file"]:
            return 1
        syscall.move_mount(scratch, "", syscall.AT_FDCWD, "/")
        try:
            Path("/file").write_text("y")
        except OSError as error:
            return 0 if error.errno == 30 else 3
        return 2

    assert in_child(work, syscall.CLONE_NEWNS) == 0
    assert (tmp_path / "file").read_text() == "x"


def test_idmapped_tree(tmp_path: Path) -> None:
    pid, pidfd = syscall.clone3(syscall.CLONE_NEWUSER)
    if pid == 0:
        signal.pause()
    try:
        namespace.write_id_maps(pid, 700000, 65536)
        userns = namespace.open_user(pid)
        try:
            tree = namespace.detached_tree(os.fspath(tmp_path), userns=userns)
        except OSError:
            pytest.skip("the file system of the test directory has no idmapped mounts")
        finally:
            os.close(userns)
        assert os.fstat(tree).st_uid == 700000
        os.close(tree)
        assert namespace.differing(pid) == syscall.CLONE_NEWUSER
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)


def test_close_range_and_signals() -> None:
    def work() -> int:
        fd = os.open("/dev/null", os.O_RDONLY)
        syscall.close_range(3)
        try:
            os.fstat(fd)
        except OSError:
            syscall.default_signal(33)
            syscall.ioprio_set(0, 2, 7)
            return 0
        return 1

    assert in_child(work, 0) == 0


def test_bpf_refuses_nonsense() -> None:
    with pytest.raises(OSError, match="bpf 99"):
        syscall.bpf(99, bytes(64))
    buffer = syscall.data_buffer(b"abc")
    assert ctypes.string_at(syscall.address_of(buffer), 3) == b"abc"
