"""Settings inside a fresh tree that make a distribution fit for being a container's root.

One row per distribution family.  The tree is treated like any container's: every path is resolved
below it (GuestRoot).  What is per container (host keys, machine id, passwords, addresses) is
emptied here and made by the container itself or by the node at create and start.
"""

from __future__ import annotations

from typing import NamedTuple

from pyvz.linux.guestroot import GuestRoot

# Units that cannot do their work without hardware or in a user namespace, or whose mounts CRIU
# cannot dump (hugetlbfs, fusectl).
MASKED = (
    "dev-hugepages.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "proc-sys-fs-binfmt_misc.automount",
    "proc-sys-fs-binfmt_misc.mount",
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udev-trigger.service",
    "systemd-udev-settle.service",
    "systemd-hwdb-update.service",
    "systemd-modules-load.service",
    "systemd-journald-audit.socket",  # audit belongs to the node; fails in a user namespace
    "systemd-rfkill.service",
    "systemd-rfkill.socket",
    "systemd-firstboot.service",
    "systemd-networkd-wait-online.service",
    "NetworkManager-wait-online.service",
    "getty@tty1.service",
)

# Links below *.wants of what a distribution enables and a container has no use for: pstore, trim
# and LVM belong to the node.
DISABLED = (
    "sysinit.target.wants/systemd-pstore.service",
    "timers.target.wants/fstrim.timer",
    "timers.target.wants/e2scrub_all.timer",
    "multi-user.target.wants/e2scrub_reap.service",
    "getty.target.wants/getty@tty1.service",
)

HOSTKEYS_UNIT = """\
# Written by pyvz: every container makes host keys of its own, once.
[Unit]
Description=Make OpenSSH host keys
ConditionPathExists=/usr/bin/ssh-keygen
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service sshd.service ssh.socket

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
RemainAfterExit=yes

[Install]
WantedBy=multi-user.target
"""

FSTAB = "# The node mounts this container's root; add other file systems here.\n"
HOSTS = """\
127.0.0.1\tlocalhost
::1\t\tlocalhost ip6-localhost ip6-loopback
ff02::1\t\tip6-allnodes
ff02::2\t\tip6-allrouters
"""
INTERFACES = """\
# Interfaces of the container; the node writes the others below interfaces.d.
source /etc/network/interfaces.d/*

auto lo
iface lo inet loopback
"""


class Family(NamedTuple):
    """What is special about a family of distributions.

    files: path -> text, written as they are.  removed: paths that go.  locale: the file that
    holds LANG.  terminals: what securetty must list.
    """

    name: str
    distributions: frozenset[str]
    files: tuple[tuple[str, str], ...] = ()
    removed: tuple[str, ...] = ()
    locale: str = "etc/locale.conf"


_OF_THE_BUILD = ("etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap")

DEBIAN = Family(
    "debian",
    frozenset({"debian"}),
    (("etc/network/interfaces", INTERFACES),),
    _OF_THE_BUILD,
    "etc/default/locale",
)
UBUNTU = Family(
    "ubuntu",
    frozenset({"ubuntu"}),
    (("etc/default/motd-news", "ENABLED=0\n"),),
    _OF_THE_BUILD,
    "etc/default/locale",
)
REDHAT = Family(
    "redhat",
    frozenset({"almalinux", "rocky", "centos", "fedora", "rhel", "vzlinux", "redhat"}),
    (("etc/selinux/config", "# The node decides about SELinux.\nSELINUX=disabled\n"),),
)
OTHER = Family("other", frozenset())
FAMILIES = (DEBIAN, UBUNTU, REDHAT)


def family(distribution: str) -> Family:
    """Return the row of a template's distribution; OTHER when it has none."""
    for row in FAMILIES:
        if distribution in row.distributions:
            return row
    return OTHER


def prepare(root: GuestRoot, distribution: str) -> None:
    """Make the tree below ROOT fit for a container of that distribution.

    Raises OSError naming the path.
    """
    row = family(distribution)
    lock_root_password(root)
    empty_identity(root)
    for path, text in row.files:
        root.write(path, text, make_parents=True)
    for path in row.removed:
        root.remove(path)
    if not root.exists(row.locale):
        root.write(row.locale, "LANG=C.UTF-8\n", make_parents=True)
    allow_console_login(root)
    if root.exists("lib/systemd/systemd") or root.exists("usr/lib/systemd/systemd"):
        prepare_systemd(root)


def lock_root_password(root: GuestRoot) -> None:
    """Leave root without a password that works, until one is set for the container."""
    if not root.exists("etc/shadow"):
        return
    lines = root.read_text("etc/shadow").splitlines()
    root.write("etc/shadow", "".join(_locked(line) + "\n" for line in lines), mode=None)
    for backup in ("etc/shadow-", "etc/passwd-", "etc/group-", "etc/gshadow-"):
        root.remove(backup)


def _locked(line: str) -> str:
    name, separator, rest = line.partition(":")
    if name != "root" or not separator:
        return line
    return ":".join((name, "*", rest.partition(":")[2]))


def empty_identity(root: GuestRoot) -> None:
    """Remove what must differ between containers, and what came from the node."""
    # An empty machine-id is filled at boot, from container_uuid where that is set:
    # machine-id(5), systemd src/core/machine-id-setup.c.
    root.write("etc/machine-id", "", mode=0o444)
    if root.exists("var/lib/dbus"):
        root.remove("var/lib/dbus/machine-id")
        root.symlink("/etc/machine-id", "var/lib/dbus/machine-id")
    for name in root.names("etc/ssh"):
        if name.startswith("ssh_host_"):
            root.remove(f"etc/ssh/{name}")
    # mmdebstrap and dnf leave the node's own name and resolvers there.
    root.remove("etc/hostname")
    root.remove("etc/resolv.conf")
    root.write("etc/resolv.conf", "")
    root.write("etc/hosts", HOSTS)
    root.write("etc/fstab", FSTAB)
    root.remove("var/lib/systemd/random-seed")


def allow_console_login(root: GuestRoot) -> None:
    """Let root log in on the console where a securetty lists the terminals."""
    if not root.exists("etc/securetty"):
        return
    lines = root.read_text("etc/securetty").splitlines()
    missing = [tty for tty in ("console", "pts/0", "tty1", "tty2") if tty not in lines]
    root.write("etc/securetty", "\n".join([*lines, *missing]) + "\n", mode=None)


def prepare_systemd(root: GuestRoot) -> None:
    """Set the default target, and mask and disable what cannot work."""
    units = "etc/systemd/system"
    for unit in MASKED:
        _link(root, "/dev/null", f"{units}/{unit}")
    for link in DISABLED:
        root.remove(f"{units}/{link}")
    _link(root, _unit_path(root, "multi-user.target"), f"{units}/default.target")
    if root.exists("usr/bin/ssh-keygen"):
        root.write(f"{units}/vz-hostkeys.service", HOSTKEYS_UNIT)
        root.mkdir(f"{units}/multi-user.target.wants", parents=True)
        _link(
            root,
            "/etc/systemd/system/vz-hostkeys.service",
            f"{units}/multi-user.target.wants/vz-hostkeys.service",
        )


def _unit_path(root: GuestRoot, unit: str) -> str:
    merged = root.exists(f"usr/lib/systemd/system/{unit}")
    return f"/{'usr/' if merged else ''}lib/systemd/system/{unit}"


def _link(root: GuestRoot, target: str, path: str) -> None:
    root.remove(path)
    root.symlink(target, path)
