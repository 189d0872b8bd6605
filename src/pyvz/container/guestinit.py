"""Which init a container has: how it is started, and how it is asked to power off or reboot.

Signals as measured in reference/containers-and-criu.md, section 4.  What cannot be told to an init
by a signal is told by a command run inside.
"""

from __future__ import annotations

import signal
from typing import NamedTuple

from pyvz.linux.guestroot import GuestRoot

# CRIU cannot dump what these mount; systemd takes its arguments for its kernel command line when it
# runs in a container.
_SYSTEMD_MASKS = (
    "systemd.mask=dev-hugepages.mount",
    "systemd.mask=sys-fs-fuse-connections.mount",
)


class InitKind(NamedTuple):
    """One kind of init.

    argv: how it is executed.  A signal of 0 means that the command is to be run instead.
    """

    name: str
    argv: tuple[str, ...]
    halt_signal: int = 0
    reboot_signal: int = 0
    halt_command: tuple[str, ...] = ()
    reboot_command: tuple[str, ...] = ()

    def stop_signal(self, *, reboot: bool) -> int:
        """The signal that asks it to stop or reboot, or 0."""
        return self.reboot_signal if reboot else self.halt_signal

    def stop_command(self, *, reboot: bool) -> tuple[str, ...]:
        """The command that asks it to stop or reboot, or ()."""
        return self.reboot_command if reboot else self.halt_command


SYSTEMD = InitKind(
    "systemd",
    ("/sbin/init", *_SYSTEMD_MASKS),
    halt_signal=signal.SIGRTMIN + 4,
    reboot_signal=signal.SIGRTMIN + 5,
)
BUSYBOX = InitKind(
    "busybox", ("/sbin/init",), halt_signal=signal.SIGUSR2, reboot_signal=signal.SIGTERM
)
# telinit is the oldest common way; SIGPWR and SIGINT do what /etc/inittab says, if anything.
SYSVINIT = InitKind(
    "sysvinit",
    ("/sbin/init",),
    halt_command=("/sbin/telinit", "0"),
    reboot_command=("/sbin/telinit", "6"),
)
UPSTART = SYSVINIT._replace(name="upstart")
OPENRC = InitKind(
    "openrc",
    ("/sbin/init",),
    halt_command=("/sbin/openrc-shutdown", "-p", "now"),
    reboot_command=("/sbin/openrc-shutdown", "-r", "now"),
)
# Something of the user's own: the signal that every service manager sends.
OTHER = InitKind("other", ("/sbin/init",), halt_signal=signal.SIGTERM, reboot_signal=signal.SIGTERM)

_KINDS = {kind.name: kind for kind in (SYSTEMD, BUSYBOX, SYSVINIT, UPSTART, OPENRC, OTHER)}
_INITS = ("/sbin/init", "/usr/sbin/init", "/etc/init", "/bin/init", "/init")
_SYSTEMDS = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")


def by_name(name: str) -> InitKind:
    """The kind of that name; an unknown name is OTHER.  argv is the usual one."""
    return _KINDS.get(name, OTHER)


def detect(root: GuestRoot) -> InitKind:
    """Look at a mounted tree, which may be hostile: only names and links are looked at."""
    found = next((path for path in _INITS if root.is_file(path)), None)
    if found is None:
        systemd = next((path for path in _SYSTEMDS if root.is_file(path)), None)
        if systemd is not None:
            return SYSTEMD._replace(argv=(systemd, *_SYSTEMD_MASKS))
        return OTHER._replace(argv=("/bin/sh",))
    kind = _kind_of(root, found)
    return kind._replace(argv=(found, *kind.argv[1:]))


def _kind_of(root: GuestRoot, path: str) -> InitKind:
    program = _final_name(root, path)
    if program == "systemd":
        return SYSTEMD
    if program == "busybox":
        return BUSYBOX
    if program == "openrc-init":
        return OPENRC
    if program == "upstart" or root.exists("/etc/init/rc-sysinit.conf"):
        return UPSTART
    if root.exists("/etc/inittab") and root.exists("/sbin/telinit"):
        return SYSVINIT
    return OTHER


def _final_name(root: GuestRoot, path: str) -> str:
    """The last name at the end of the links (Debian: /sbin/init -> /lib/systemd/systemd)."""
    for _ in range(8):
        try:
            target = root.readlink(path)
        except OSError:
            break
        path = target if target.startswith("/") else f"{path.rpartition('/')[0]}/{target}"
    return path.rpartition("/")[2]
