"""The seccomp filter of a container, as a classic BPF program for seccomp(2).

A deny list (reference/containers-and-criu.md, section 3): what reaches the whole node, and,
unless the container has `nesting`, the namespaces that CRIU cannot dump when they are nested.
clone3 hides its flags in memory where a filter cannot look, so it answers ENOSYS then and libc
falls back to clone.  The rules hold for x86-64 and i386 alike; x32 is refused as a whole.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
from typing import Any

from pyvz.errors import Unsupported
from pyvz.linux import syscall

DENIED = (
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module"),
    *("create_module", "query_module", "get_kernel_syms", "nfsservctl", "acct"),
    *("open_by_handle_at", "keyctl", "add_key", "request_key", "bpf", "userfaultfd"),
    *("perf_event_open", "lookup_dcookie", "iopl", "ioperm", "swapon", "swapoff"),
    *("vm86", "vm86old"),
)
# Nested mount, network and cgroup namespaces are dumped well; these kinds are not.
_NESTED = (
    syscall.CLONE_NEWUTS,
    syscall.CLONE_NEWIPC,
    syscall.CLONE_NEWUSER,
    syscall.CLONE_NEWPID,
)

NETLINK_NETFILTER = 12  # include/uapi/linux/netlink.h
# IPT_SO_SET_REPLACE and _ADD_COUNTERS, the same of arptables and ebtables, and ip6tables.
_TABLES = ((socket.IPPROTO_IP, (64, 65, 96, 97, 128, 129)), (socket.IPPROTO_IPV6, (64, 65)))

# linux/btrfs.h: SUBVOL_CREATE, SNAP_CREATE and their second versions.  What a guest would keep in a
# subvolume of its own counts for no limit of the container's.
_SUBVOLUMES = (0x5000940E, 0x50009401, 0x50009418, 0x50009417)


@functools.cache
def program(*, nesting: bool = False, netfilter: bool = True) -> bytes:
    """The BPF program as 8-byte instructions; Unsupported when libseccomp is missing.

    netfilter: the inside may have a packet filter of its own.
    """
    try:
        import pyseccomp  # noqa: PLC0415  # loads libseccomp: only where a filter is made
    except (ImportError, OSError, RuntimeError) as error:
        raise Unsupported(f"libseccomp cannot be loaded: {error}") from error

    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    if rules.exist_arch(pyseccomp.Arch.X86_64):
        rules.add_arch(pyseccomp.Arch.X86)
    # Another ABI (x32) would need rules of its own, and no guest needs it.
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ERRNO(errno.ENOSYS))
    refuse = pyseccomp.ERRNO(errno.EPERM)
    for name in DENIED:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        if number != -1:  # __NR_SCMP_ERROR: this libseccomp does not know the name
            rules.add_rule(refuse, number)
    for command in _SUBVOLUMES:  # as elsewhere, so that systemd makes directories instead
        # The kernel looks at 32 bits of it only, whatever is above them.
        wanted = pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xFFFFFFFF, command)
        rules.add_rule(pyseccomp.ERRNO(errno.ENOTTY), "ioctl", wanted)
    if not nesting:
        _refuse_nesting(pyseccomp, rules)
    if not netfilter:
        _refuse_netfilter(pyseccomp, rules)
    return _export(rules)


def _refuse_nesting(pyseccomp: Any, rules: Any) -> None:  # noqa: ANN401  # an untyped library
    refuse = pyseccomp.ERRNO(errno.EPERM)
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    for call, flags in (("clone", _NESTED), ("unshare", (*_NESTED, syscall.CLONE_NEWTIME))):
        for flag in flags:  # clone(2): the low byte is the exit signal, so not CLONE_NEWTIME
            rules.add_rule(refuse, call, pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))


def _refuse_netfilter(pyseccomp: Any, rules: Any) -> None:  # noqa: ANN401
    """Refuse nftables and conntrack (netlink), and the tables of ip, ip6, arp and ebtables.

    A 32-bit program that uses socketcall(2), whose arguments are in memory, is not seen; it
    reaches nothing but its own container's namespace by that.
    """
    refuse = pyseccomp.ERRNO(errno.EPERM)
    equal = pyseccomp.EQ
    netlink = pyseccomp.Arg(0, equal, socket.AF_NETLINK)
    rules.add_rule(refuse, "socket", netlink, pyseccomp.Arg(2, equal, NETLINK_NETFILTER))
    for level, options in _TABLES:
        for option in options:
            given = pyseccomp.Arg(1, equal, level), pyseccomp.Arg(2, equal, option)
            rules.add_rule(refuse, "setsockopt", *given)


def _export(rules: Any) -> bytes:  # noqa: ANN401
    with open(os.memfd_create("pyvz-seccomp", os.MFD_CLOEXEC), "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
