"""Host name and resolver of a guest: /etc/hostname, /etc/hosts, /etc/resolv.conf."""

from __future__ import annotations

import re

from pyvz.linux.guestroot import GuestRoot
from pyvz.network.guest.base import MARK, GuestNetwork, is_ours, put, read

HOSTS_MARK = "# pyvz"
RESOLVED = "etc/systemd/resolved.conf.d/pyvz.conf"
_RESOLV = "etc/resolv.conf"
_SYSCONFIG = "etc/sysconfig/network"


def write(guest: GuestRoot, network: GuestNetwork) -> None:
    """Write what NETWORK names; what it does not name stays as it is.

    Raises OSError and GuestFileError.
    """
    if network.hostname:
        _write_hostname(guest, network)
    if network.nameservers or network.searchdomains:
        _write_resolver(guest, network)


def resolver_text(network: GuestNetwork) -> str:
    """Return resolv.conf(5)."""
    lines = [MARK]
    if network.searchdomains:
        lines.append("search " + " ".join(network.searchdomains))
    lines += [f"nameserver {address}" for address in network.nameservers]
    return "".join(line + "\n" for line in lines)


def _write_resolver(guest: GuestRoot, network: GuestNetwork) -> None:
    if _is_resolved(guest):
        text = "[Resolve]\n"
        if network.nameservers:
            text += f"DNS={' '.join(network.nameservers)}\n"
        if network.searchdomains:
            text += f"Domains={' '.join(network.searchdomains)}\n"
        put(guest, RESOLVED, text)
        return
    former = read(guest, _RESOLV)
    wanted = resolver_text(network)
    if not network.nameservers and former and not is_ours(former):
        # Only the domains were named: the servers are somebody else's and must not be lost.
        kept = [line for line in former.splitlines() if not re.match(r"(search|domain)\s", line)]
        wanted = "\n".join([f"search {' '.join(network.searchdomains)}", *kept]) + "\n"
    if former != wanted:
        guest.write(_RESOLV, wanted)


def _is_resolved(guest: GuestRoot) -> bool:
    """Whether resolv.conf is systemd-resolved's, which would write over ours."""
    try:
        return "systemd/resolve/" in guest.readlink(_RESOLV)
    except OSError:
        return False


def _write_hostname(guest: GuestRoot, network: GuestNetwork) -> None:
    name = network.hostname
    if read(guest, "etc/hostname") != f"{name}\n":
        guest.write("etc/hostname", f"{name}\n")
    text = read(guest, _SYSCONFIG)
    changed = re.sub(r"(?m)^HOSTNAME=.*$", lambda _: f"HOSTNAME={name}", text)
    if changed != text:
        guest.write(_SYSCONFIG, changed)
    former = read(guest, "etc/hosts")
    wanted = hosts_text(former, network)
    if former != wanted:
        guest.write("etc/hosts", wanted)


def hosts_text(former: str, network: GuestNetwork) -> str:
    """Return /etc/hosts with one line of ours; none where another line has the name."""
    lines = [line for line in former.splitlines() if not line.rstrip().endswith(HOSTS_MARK)]
    words = {word for line in lines for word in line.partition("#")[0].split()[1:]}
    name = network.hostname
    if name not in words:
        own = (str(x.ip) for i in network.interfaces for x in i.addresses if x.version == 4)
        short = name.partition(".")[0]
        both = f"{name} {short}" if short != name else name
        lines.append(f"{next(own, '127.0.1.1')}\t{both}\t{HOSTS_MARK}")
    return "".join(line + "\n" for line in lines)
