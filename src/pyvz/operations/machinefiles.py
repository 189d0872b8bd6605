"""What a machine from a template is told about itself: files for its inside, handed over by fw_cfg.

etc/hostname, etc/hosts                 the host name
etc/systemd/network/50-pyvz-netN.network  addresses, routes, name servers of each card
etc/ssh/pyvz_keys/root                  keys that let in as root, beside those of the guest's own
"""

from __future__ import annotations

import base64
import io
import tarfile
import time
from collections.abc import Mapping

from pyvz.model.config import Config
from pyvz.model.grammar_list import Address
from pyvz.model.grammar_net import NetIf
from pyvz.network.base import GATEWAY6

KEYS = "etc/ssh/pyvz_keys"
_SSHD = f"AuthorizedKeysFile .ssh/authorized_keys .ssh/authorized_keys2 /{KEYS}/%u\n"
_ON_LINK = ["Destination=0.0.0.0/0", "Scope=link"]


def payload(name: str, config: Config) -> str:
    """Return the archive of files in base64."""
    return base64.b64encode(archive(files(name, config))).decode()


def files(name: str, config: Config) -> dict[str, str]:
    """Return {path inside: content}."""
    host = config.network.hostname or name
    short = host.partition(".")[0]
    names = f"{host} {short}" if short != host else host
    made = {
        "etc/hostname": f"{host}\n",
        "etc/hosts": f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {names}\n",
        # Also without a key: one that was taken away must not let in any more.
        f"{KEYS}/root": "".join(f"{key}\n" for key in config.machine.ssh_keys),
        "etc/ssh/sshd_config.d/50-pyvz.conf": _SSHD,
    }
    cards = [nic for nic in config.network.interfaces if nic.ifname != "venet0"]
    first = True
    for index, nic in enumerate(cards):
        if nic.configure != "none":
            made[f"etc/systemd/network/50-pyvz-net{index}.network"] = _card(
                nic, config, first=first
            )
            first = False
    return made


def _card(nic: NetIf, config: Config, *, first: bool) -> str:
    lines = ["# Made by pyvz at each boot.", "[Match]", f"MACAddress={nic.mac}", "", "[Network]"]
    dhcp = {(True, True): "yes", (True, False): "ipv4", (False, True): "ipv6"}
    if word := dhcp.get((nic.dhcp, nic.dhcp6)):
        lines.append(f"DHCP={word}")
    addresses = [*nic.ip, *nic.ip6]
    lines += [f"Address={with_length(nic, address)}" for address in addresses]
    if first:
        lines += [f"DNS={server}" for server in config.network.nameservers or ()]
        if config.network.searchdomains:
            lines.append(f"Domains={' '.join(config.network.searchdomains)}")
    lines += _routes(nic, first=first)
    return "\n".join([*lines, ""])


def with_length(nic: NetIf, address: Address) -> str:
    """Return an address of a card with the length of its prefix."""
    ip, mask = address.ip, address.mask
    if not mask or nic.type == "routed":
        return f"{ip}/{128 if ':' in ip else 32}"
    if "." in mask:
        bits = "".join(f"{int(part):08b}" for part in mask.split("."))
        return f"{ip}/{bits.count('1')}"
    return f"{ip}/{mask}"


def _routes(nic: NetIf, *, first: bool) -> list[str]:
    """Return the default routes: by the gateways, or, of a routed card, on the link itself."""
    lines: list[str] = []
    for gateway, given in ((nic.gw, nic.ip), (nic.gw6, nic.ip6)):
        if gateway:
            lines += ["", "[Route]", f"Gateway={gateway}", "GatewayOnLink=yes"]
        elif nic.type == "routed" and given and first:
            # IPv4: the node answers, whoever is asked for (proxy ARP).  IPv6: it has an address.
            way = [f"Gateway={GATEWAY6}"] if given is nic.ip6 else _ON_LINK
            lines += ["", "[Route]", *way]
    return lines


def archive(made: Mapping[str, str]) -> bytes:
    """Return FILES as a compressed archive whose members belong to root."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, content in made.items():
            data = content.encode()
            member = tarfile.TarInfo(path)
            member.size, member.mode, member.mtime = len(data), 0o644, int(time.time())
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
