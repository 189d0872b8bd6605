"""System calls that Python 3.11 has no function for: the only user of ctypes.

One small function per call.  A failing call raises OSError (of the subclass for its errno) whose
text starts with the name of the call.  Constants are copied from the uapi headers of Linux 6.12.
Imports nothing heavy: the keeper and its children live on this module alone.

Calls that may sleep go through CDLL, which gives up the GIL; clone3 goes through PyDLL, because
the child must come back holding it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
from collections.abc import Sequence
from typing import NamedTuple

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_SYMLINKS = 0x10
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOVE_MOUNT_BENEATH = 0x200  # Linux 6.5
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

RENAME_EXCHANGE = 2  # linux/fs.h

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# linux/sched.h
CLONE_NEWTIME = 0x80
CLONE_PIDFD = 0x1000
CLONE_PARENT = 0x8000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
SECBIT_NO_SETUID_FIXUP = 1 << 2
PR_GET_SECUREBITS = 27
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_SET_MEMORY_MERGE = 67
PR_GET_MEMORY_MERGE = 68

CLOSE_RANGE_CLOEXEC = 4
SECCOMP_SET_MODE_FILTER = 1
IOPRIO_WHO_PROCESS = 1
IOPRIO_CLASS_SHIFT = 13

# linux/bpf.h
BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_PROG_QUERY = 16

# linux/pidfd.h: _IOWR(0xFF, 11, struct pidfd_info), 64 bytes as published in 6.13
_PIDFD_GET_INFO = 0xC040FF0B
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSMOUNT_CLOEXEC = 1
_PIDFD_INFO_EXIT = 1 << 3
_CLOCK_MONOTONIC = 1

_NUMBERS = {  # calls older than 5.1 differ between architectures
    "x86_64": {"pivot_root": 155, "seccomp": 317, "bpf": 321, "ioprio_set": 251, "sigaction": 13},
    "aarch64": {"pivot_root": 41, "seccomp": 277, "bpf": 280, "ioprio_set": 30, "sigaction": 134},
}
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_CLONE3 = 435
_SYS_CLOSE_RANGE = 436
_SYS_OPENAT2 = 437
_SYS_PIDFD_GETFD = 438
_SYS_MOUNT_SETATTR = 442
_SYS_QUOTACTL_FD = 443

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_holding_gil = ctypes.PyDLL(None, use_errno=True)
_holding_gil.syscall.restype = ctypes.c_long

PathArg = str | os.PathLike[str]


class MountAttr(NamedTuple):
    """What mount_setattr(2) changes: MOUNT_ATTR_* to set and clear, MS_* propagation, userns."""

    set: int = 0
    clear: int = 0
    propagation: int = 0
    userns_fd: int = 0


class PidfdInfo(NamedTuple):
    """PIDFD_GET_INFO: pid is 0 once reaped; exit_status is a wait status, None while alive."""

    pid: int
    exit_status: int | None


def _number(name: str) -> int:
    machine = os.uname().machine
    try:
        return _NUMBERS[machine][name]
    except KeyError:
        raise OSError(38, f"{name}: no system call number known for {machine}") from None


def _check(result: int, call: str, name: PathArg | None = None) -> int:
    if result >= 0:
        return result
    code = ctypes.get_errno()
    filename = None if name is None else os.fspath(name)
    raise OSError(code, f"{call}: {os.strerror(code)}", filename)


def _c(path: PathArg | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def mount(
    source: PathArg | None,
    target: PathArg,
    fstype: str | None = None,
    flags: int = 0,
    data: str | None = None,
) -> None:
    """mount(2)."""
    result = _libc.mount(_c(source), _c(target), _c(fstype), flags, _c(data))
    _check(result, "mount", target)


def umount2(target: PathArg, flags: int = 0) -> None:
    """umount2(2); flags: MNT_DETACH, UMOUNT_NOFOLLOW."""
    _check(_libc.umount2(_c(target), flags), "umount", target)


def open_tree(dirfd: int, path: PathArg, flags: int = 0) -> int:
    """open_tree(2), always close-on-exec.  With OPEN_TREE_CLONE a detached copy, else O_PATH."""
    call = flags | OPEN_TREE_CLOEXEC
    result = _libc.syscall(_SYS_OPEN_TREE, dirfd, _c(path), ctypes.c_uint(call))
    return _check(result, "open_tree", path)


def move_mount(
    from_fd: int,
    from_path: PathArg,
    to_fd: int,
    to_path: PathArg,
    flags: int = MOVE_MOUNT_F_EMPTY_PATH,
) -> None:
    """move_mount(2).  By default from_fd itself (from_path "") is attached."""
    result = _libc.syscall(
        _SYS_MOVE_MOUNT, from_fd, _c(from_path), to_fd, _c(to_path), ctypes.c_uint(flags)
    )
    _check(result, "move_mount", to_path)


def detached_mount(
    fstype: str, attributes: int = 0, options: Sequence[tuple[str, str | None]] = ()
) -> int:
    """Mount a file system, attached nowhere: fsopen(2) to fsmount(2).

    attributes: MOUNT_ATTR_*.  options: of the file system (None: a flag without a value), with
    "source" for its device.  Returns a descriptor, as long as which the mount lives, or for
    move_mount.
    """
    context = _check(_libc.syscall(_SYS_FSOPEN, _c(fstype), ctypes.c_uint(1)), "fsopen", fstype)
    try:
        for name, value in options:
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            result = _libc.syscall(_SYS_FSCONFIG, context, command, _c(name), _c(value), 0)
            _check(result, "fsconfig", name)
        result = _libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        _check(result, "fsconfig", fstype)
        flags = ctypes.c_uint(_FSMOUNT_CLOEXEC)
        result = _libc.syscall(_SYS_FSMOUNT, context, flags, ctypes.c_uint(attributes))
        return _check(result, "fsmount", fstype)
    finally:
        os.close(context)


def mount_setattr(dirfd: int, path: PathArg, attr: MountAttr, flags: int = 0) -> None:
    """mount_setattr(2); flags: AT_EMPTY_PATH, AT_RECURSIVE.  MOUNT_ATTR_IDMAP needs userns_fd."""
    raw = struct.pack("=4Q", attr.set, attr.clear, attr.propagation, attr.userns_fd)
    result = _libc.syscall(
        _SYS_MOUNT_SETATTR, dirfd, _c(path), ctypes.c_uint(flags), raw, ctypes.c_size_t(len(raw))
    )
    _check(result, "mount_setattr", path)


def pivot_root(new_root: PathArg, put_old: PathArg) -> None:
    """pivot_root(2).  (".", ".") stacks the old root on the new one, where umount2 finds it."""
    _check(_libc.syscall(_number("pivot_root"), _c(new_root), _c(put_old)), "pivot_root", new_root)


def clone3(
    flags: int, cgroup_fd: int | None = None, exit_signal: int = signal.SIGCHLD
) -> tuple[int, int]:
    """Fork with clone3(2); returns (pid, pidfd) in the parent and (0, -1) in the child.

    Only for single-threaded processes.  CLONE_PIDFD is always added; with cgroup_fd (a cgroup v2
    directory) the child is born there (CLONE_INTO_CGROUP).
    """
    pidfd = ctypes.c_int(-1)
    flags |= CLONE_PIDFD | (CLONE_INTO_CGROUP if cgroup_fd is not None else 0)
    # struct clone_args: flags pidfd child_tid parent_tid exit_signal stack stack_size tls
    # set_tid set_tid_size cgroup
    raw = struct.pack(
        "=11Q", flags, ctypes.addressof(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, cgroup_fd or 0
    )
    ctypes.pythonapi.PyOS_BeforeFork()
    result = _holding_gil.syscall(_SYS_CLONE3, raw, ctypes.c_size_t(len(raw)))
    if result == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    code = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if result < 0:
        raise OSError(code, f"clone3: {os.strerror(code)}")
    return result, pidfd.value


def setns(fd: int, nstype: int = 0) -> None:
    """setns(2); fd is a namespace file, or a pidfd with several CLONE_NEW* at once."""
    _check(_libc.setns(fd, ctypes.c_int(nstype)), "setns")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def prctl(option: int, *args: int) -> int:
    """prctl(2); missing arguments are 0."""
    padded = (*args, 0, 0, 0, 0)[:4]
    return _check(_libc.prctl(option, *padded), f"prctl {option}")


def setfsuid(uid: int) -> int:
    """setfsuid(2), of this thread; returns the one before."""
    return int(_libc.setfsuid(ctypes.c_uint(uid)))


def setfsgid(gid: int) -> int:
    """setfsgid(2), of this thread; returns the one before."""
    return int(_libc.setfsgid(ctypes.c_uint(gid)))


def set_child_subreaper() -> None:
    """Orphaned descendants become our children."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def set_parent_death_signal(number: int) -> None:
    """Be sent a signal when the thread that forked us ends (0: none)."""
    prctl(PR_SET_PDEATHSIG, number)


def set_no_new_privs() -> None:
    """No more set-uid from here on."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def set_memory_merge(*, on: bool) -> None:
    """KSM for this process and its children (PR_SET_MEMORY_MERGE, Linux 6.4)."""
    prctl(PR_SET_MEMORY_MERGE, int(on))


def bounding_has(capability: int) -> bool:
    """Whether the capability is in the bounding set (EINVAL: the kernel does not know it)."""
    return prctl(PR_CAPBSET_READ, capability) == 1


def drop_bounding(capability: int) -> None:
    """Take a capability out of the bounding set for ever."""
    prctl(PR_CAPBSET_DROP, capability)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the three sets of this thread; bit n is capability n.  Clears the ambient set by it."""
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    low = (effective & 0xFFFFFFFF, permitted & 0xFFFFFFFF, inheritable & 0xFFFFFFFF)
    high = (effective >> 32, permitted >> 32, inheritable >> 32)
    _check(_libc.capset(header, struct.pack("=6I", *low, *high)), "capset")


def seccomp_load(program: bytes) -> None:
    """Install a seccomp filter: classic BPF instructions as 8-byte struct sock_filter."""
    if not program or len(program) % 8:
        raise OSError(22, "seccomp: the program is not a row of 8-byte instructions")
    code = ctypes.create_string_buffer(program, len(program))
    prog = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    result = _libc.syscall(_number("seccomp"), SECCOMP_SET_MODE_FILTER, ctypes.c_uint(0), prog)
    _check(result, "seccomp")


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """close_range(2); with CLOSE_RANGE_CLOEXEC the descriptors close at exec."""
    result = _libc.syscall(
        _SYS_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(flags)
    )
    _check(result, "close_range")


def openat2(dirfd: int, path: PathArg, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2), always close-on-exec; resolve: RESOLVE_IN_ROOT and friends."""
    raw = struct.pack("=3Q", flags | os.O_CLOEXEC, mode, resolve)
    result = _libc.syscall(_SYS_OPENAT2, dirfd, _c(path), raw, ctypes.c_size_t(len(raw)))
    return _check(result, "openat2", path)


def exchange(first: PathArg, second: PathArg) -> None:
    """renameat2(2) with RENAME_EXCHANGE: each gets the other's name, in one step."""
    flags = ctypes.c_uint(RENAME_EXCHANGE)
    result = _libc.renameat2(AT_FDCWD, _c(first), AT_FDCWD, _c(second), flags)
    _check(result, "renameat2", second)


def quotactl_fd(fd: int, command: int, number: int, data: bytearray) -> None:
    """quotactl_fd(2) of the file system that `fd` lies in; `data` is given and filled."""
    buffer = (ctypes.c_char * len(data)).from_buffer(data)
    result = _libc.syscall(
        _SYS_QUOTACTL_FD, fd, ctypes.c_uint(command), ctypes.c_uint(number), buffer
    )
    _check(result, "quotactl_fd")


def pidfd_open(pid: int) -> int:
    """pidfd_open(2); ProcessLookupError when there is no such process."""
    return os.pidfd_open(pid)


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """pidfd_send_signal(2); ProcessLookupError once the process has been reaped."""
    signal.pidfd_send_signal(pidfd, number)


def pidfd_getfd(pidfd: int, number: int) -> int:
    """pidfd_getfd(2): a copy of another process's descriptor, which closes at exec."""
    result = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, number, ctypes.c_uint(0))
    return _check(result, "pidfd_getfd")


def pidfd_info(pidfd: int) -> PidfdInfo:
    """PIDFD_GET_INFO (Linux 6.13; exit status from 6.15, also for processes not our children).

    Raises OSError ENOTTY or EINVAL on older kernels, ProcessLookupError when the process was
    reaped and the kernel does not keep its exit status.
    """
    raw = bytearray(64)
    struct.pack_into("=Q", raw, 0, _PIDFD_INFO_EXIT)
    fcntl.ioctl(pidfd, _PIDFD_GET_INFO, raw)
    (mask,) = struct.unpack_from("=Q", raw, 0)
    (pid,) = struct.unpack_from("=I", raw, 16)
    (status,) = struct.unpack_from("=i", raw, 60)
    return PidfdInfo(pid, status if mask & _PIDFD_INFO_EXIT else None)


def sethostname(name: str) -> None:
    """sethostname(2): at most 64 bytes, else OSError EINVAL."""
    raw = os.fsencode(name)
    _check(_libc.sethostname(raw, ctypes.c_size_t(len(raw))), "sethostname")


def setdomainname(name: str) -> None:
    """setdomainname(2): at most 64 bytes, else OSError EINVAL."""
    raw = os.fsencode(name)
    _check(_libc.setdomainname(raw, ctypes.c_size_t(len(raw))), "setdomainname")


def ioprio_set(pid: int, io_class: int, level: int) -> None:
    """ioprio_set(2) of one process: class 1 real time, 2 best effort, 3 idle; level 0..7."""
    value = io_class << IOPRIO_CLASS_SHIFT | level
    _check(_libc.syscall(_number("ioprio_set"), IOPRIO_WHO_PROCESS, pid, value), "ioprio_set")


def default_signal(number: int) -> None:
    """Give a signal its default action, also one that libc keeps for itself (32, 33)."""
    action = bytes(32)  # struct kernel_sigaction with SIG_DFL, no flags, an empty mask
    size = ctypes.c_size_t(8)
    result = _libc.syscall(_number("sigaction"), number, action, None, size)
    _check(result, "rt_sigaction")


def syncfs(fd: int) -> None:
    """syncfs(2): write out the file system that holds fd."""
    _check(_libc.syncfs(fd), "syncfs")


def start_writeback(fd: int, offset: int, length: int) -> None:
    """sync_file_range(2): let the disk begin with a part of a file; nobody waits for it."""
    where = (ctypes.c_int64(offset), ctypes.c_int64(length))
    write = 2  # SYNC_FILE_RANGE_WRITE
    _check(_libc.sync_file_range(fd, *where, ctypes.c_uint(write)), "sync_file_range")


def punch_hole(fd: int, offset: int, length: int) -> None:
    """fallocate(2): give a part of a file back to the system; it reads as zeros from then on."""
    flags = 1 | 2  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
    where = (ctypes.c_int64(offset), ctypes.c_int64(length))
    _check(_libc.fallocate64(fd, flags, *where), "fallocate")


def periodic_timer(seconds: float) -> int:
    """timerfd_create(2) and timerfd_settime(2): a descriptor that becomes readable so often."""
    fd = _check(_libc.timerfd_create(_CLOCK_MONOTONIC, os.O_CLOEXEC), "timerfd_create")
    whole, nanoseconds = divmod(round(seconds * 1e9), 10**9)
    times = struct.pack("=4q", whole, nanoseconds, whole, nanoseconds)
    _check(_libc.timerfd_settime(fd, 0, times, None), "timerfd_settime")
    return fd


def address_of(buffer: ctypes.Array[ctypes.c_char]) -> int:
    """The address of a buffer from data_buffer(), for the pointers inside bpf attributes."""
    return ctypes.addressof(buffer)


def data_buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    """Memory that keeps its address while the returned object lives."""
    return ctypes.create_string_buffer(data, len(data))


def bpf(command: int, attr: bytes) -> tuple[int, bytes]:
    """bpf(2): returns the result (a descriptor or 0) and the attributes as the kernel left them."""
    raw = ctypes.create_string_buffer(attr, len(attr))
    result = _libc.syscall(_number("bpf"), command, raw, ctypes.c_uint(len(attr)))
    return _check(result, f"bpf {command}"), raw.raw
