"""How `list -i` tells of a network card; the order is that of the original (PrlDev.cpp)."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_interface

from pyvz.model.config import Config
from pyvz.model.grammar_list import Address
from pyvz.model.grammar_net import NetIf

MODEL = "card"  # key of NETIF, of ours: the model of a virtual machine's card


def addresses(given: Iterable[Address]) -> str:
    """Return addresses as the original shows them: the mask of IPv4 with dots, a space behind."""
    return "".join(f"{_dotted(address)} " for address in given)


def _dotted(address: Address) -> str:
    if address.mask.isdecimal() and "." in address.ip:
        return f"{address.ip}/{ip_interface(f'{address.ip}/{address.mask}').netmask}"
    return str(address)


def card(nic: NetIf, *, full: bool) -> dict[str, object]:
    """Return what is told of one card of a container or a virtual machine; full: with -f."""
    shown: dict[str, object] = {"enabled": True, "dev": nic.host_ifname}
    if nic.ifname:
        shown["ifname"] = nic.ifname
    shown |= {"type": "routed"} if nic.type == "routed" else {"network": nic.network}
    shown["mac"] = nic.mac.replace(":", "").upper()
    shown["card"] = dict(nic.other).get(MODEL, "virtio")
    if full:
        filtered = "on" if nic.mac_filter else "off"
        shown |= {"preventpromisc": filtered, "mac_filter": filtered}
        shown["ip_filter"] = "on" if nic.ip_filter else "off"
    if nic.ip or nic.ip6:
        shown["ips"] = addresses((*nic.ip, *nic.ip6))
    if nic.type != "routed":
        shown |= {name: "yes" for name in ("dhcp", "dhcp6") if getattr(nic, name)}
        shown |= {name: getattr(nic, name) for name in ("gw", "gw6") if getattr(nic, name)}
    return shown | {"state": "connected" if nic.connected else "disconnected"}


def shaping(config: Config) -> dict[str, object]:
    """Return the block "Network Shaping" of -f: class:kbits of each rate, and whether they bind."""
    rates = (config.network.rates or ()) if config.is_set("network.rates") else ()
    return {
        "enabled": bool(rates),
        "ratebound": "yes" if config.network.rate_bound else "no",
        "rate": " ".join(f"{each.traffic_class}:{each.kbits}" for each in rates),
    }
