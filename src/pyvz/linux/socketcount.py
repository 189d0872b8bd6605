"""How many sockets a process's network namespace has, by kind.

/proc/PID/net/sockstat, sockstat6 and protocols are made by the kernel of that process's network
namespace; reading them enters nothing.  proc_pid_net(5).
"""

from __future__ import annotations

from typing import NamedTuple


class Sockets(NamedTuple):
    """TCP sockets, and all others (UDP, raw, Unix)."""

    tcp: int
    other: int


def of(pid: int) -> Sockets | None:
    """Return the sockets of the network namespace of PID; None when it has ended."""
    try:
        tcp = other = 0
        for name in ("sockstat", "sockstat6"):
            for protocol, used in parse(_read(f"/proc/{pid}/net/{name}")).items():
                if protocol in ("TCP", "TCP6"):
                    tcp += used
                else:
                    other += used
        unix = len(_read(f"/proc/{pid}/net/unix").splitlines())
        if unix == 0:  # not even its heading: the process has ended
            return None
        return Sockets(tcp, other + unix - 1)
    except OSError:
        return None


def parse(text: str) -> dict[str, int]:
    """Return protocol -> sockets in use of a sockstat file ("TCP: inuse 3 orphan 0 ...")."""
    found = {}
    for line in text.splitlines():
        protocol, _, rest = line.partition(":")
        words = rest.split()
        if len(words) >= 2 and words[0] == "inuse":
            found[protocol] = int(words[1])
    return found


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except FileNotFoundError:  # without IPv6
        return ""
