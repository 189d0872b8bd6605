"""Capabilities: names, numbers, and the set that a container's processes may have.

Numbers and names: linux/capability.h.  The default set is what OpenVZ 7 leaves to a container
(reference/containers-and-criu.md, section 3): sys_boot stays, because reboot(2) inside is how we
learn of reboot and power-off; what could reach the node or would keep CRIU out goes.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyvz.errors import BadValue

NAMES = (
    *("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid"),
    *("setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw"),
    *("ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct"),
    *("sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod"),
    *("lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog"),
    *("wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore"),
)
_NUMBERS = {name: number for number, name in enumerate(NAMES)}

WITHHELD = frozenset(
    {
        *("sys_module", "sys_rawio", "sys_time", "mac_override", "mac_admin", "syslog"),
        *("wake_alarm", "block_suspend", "bpf", "perfmon", "checkpoint_restore"),
        *("linux_immutable", "sys_resource"),
    }
)
DEFAULT = frozenset(NAMES) - WITHHELD


def number(name: str) -> int:
    """The number of a capability; case and a leading CAP_ do not matter.  Raises BadValue."""
    found = _NUMBERS.get(name.lower().removeprefix("cap_"))
    if found is None:
        raise BadValue(f"'{name}' is not a capability")
    return found


def mask(names: Iterable[str]) -> int:
    """The set as a number: bit n is capability n."""
    bits = 0
    for name in names:
        bits |= 1 << number(name)
    return bits


def names(bits: int) -> frozenset[str]:
    """The set back from a number; bits without a name are left out."""
    return frozenset(name for name, index in _NUMBERS.items() if bits >> index & 1)


def changed(base: frozenset[str], switches: Iterable[tuple[str, bool]]) -> frozenset[str]:
    """The set with some capabilities put on or off; raises BadValue for an unknown name."""
    result = set(base)
    for name, on in switches:
        known = NAMES[number(name)]
        (result.add if on else result.discard)(known)
    return frozenset(result)
