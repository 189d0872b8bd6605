"""Parameters of the network (config.md section 3.5)."""

from __future__ import annotations

from pyvz.errors import BadValue
from pyvz.model.grammar import Choice, Hostname, Text, YesNo
from pyvz.model.grammar_firewall import Firewalls
from pyvz.model.grammar_list import INTERFACES, Addresses, Domains, Nameservers, Rates
from pyvz.model.grammar_net import NetIf, NetIfs, change_netif
from pyvz.model.param import CONTAINERS, MACHINES, Option, Param, both, tools

_ADDRESSES = Addresses()
_RATES = Rates()
_NAMESERVERS = Nameservers()
_DOMAINS = Domains()
_NETIFS = NetIfs()
_NO_ARP = "addresses are always checked before they are used"


def _scoped(name: str, metavar: str, about: str, key: str = "", **more: object) -> Option:
    """Return an option that changes the interface named before it."""
    target = (key or name).replace("-", "_")

    def merge(netif: NetIf, text: str) -> NetIf:
        return change_netif(netif, target, text)

    return Option(name, metavar, about, merge=merge, scope="netif", **more)  # type: ignore[arg-type]


def _set_addresses(netif: NetIf, text: str) -> NetIf:
    return change_netif(netif._replace(ip=(), ip6=()), "ipadd", text)


def _mac(netif: NetIf, text: str) -> NetIf:
    return change_netif(netif, "mac", "" if text.strip().lower() == "auto" else text)


def _configure(netif: NetIf, text: str) -> NetIf:
    return change_netif(netif, "configure", "all" if YesNo().parse(text) else "none")


def _ipadd(what: str) -> Option:
    return Option(
        f"{what}add",
        "IP[/MASK]",
        "give it an address",
        merge=_ADDRESSES.add,
        repeat=True,
    )


def _ipdel(what: str) -> Option:
    return Option(
        f"{what}del",
        "IP[/MASK]|all",
        "take an address away",
        merge=_ADDRESSES.remove,
        repeat=True,
    )


_SCOPED_BOTH = (
    _scoped("ipadd", "IP[/MASK]", "give the interface an address", repeat=True),
    _scoped("ipdel", "IP[/MASK]|all", "take an address away", repeat=True),
    _scoped("gw", "IP", "default gateway; empty: none"),
    _scoped("gw6", "IP", "default gateway of IPv6; empty: none"),
    _scoped("network", "NAME", "virtual network it is plugged into"),
)
_SCOPED_PRLCTL = (
    _scoped("dhcp", "yes|no", "take the IPv4 address from DHCP"),
    _scoped("dhcp6", "yes|no", "take the IPv6 address from DHCP"),
    Option("mac", "MAC|auto", "hardware address", merge=_mac, scope="netif"),
    Option("ipset", "IP[/MASK]", "replace all addresses", merge=_set_addresses, scope="netif"),
    Option("configure", "yes|no", "configure it inside", merge=_configure, scope="netif"),
    _scoped("type", "routed|bridged", "how it is connected"),
    _scoped("ipfilter", "on|off", "let only its own addresses pass", "ip_filter"),
    _scoped("macfilter", "on|off", "let only its own hardware address pass", "mac_filter"),
    _scoped("preventpromisc", "on|off", "as --macfilter", "mac_filter"),
)
_SCOPED_VZCTL = (
    _scoped("dhcp", "yes|no", "take the IPv4 address from DHCP"),
    _scoped("dhcp6", "yes|no", "take the IPv6 address from DHCP"),
    _scoped("mac", "MAC", "hardware address"),
    _scoped("host_mac", "MAC", "hardware address of the node's end"),
    _scoped("host_ifname", "NAME", "name of the node's end"),
    _scoped("mac_filter", "on|off", "let only its own hardware address pass"),
    _scoped("ip_filter", "on|off", "let only its own addresses pass"),
    _scoped("configure", "none|all", "configure it inside"),
    _scoped("nettype", "routed|bridge", "how it is connected", "type"),
    _scoped("vporttype", "ovs", "kind of the bridge's port", "vport"),
)

IP_ADDRESS = Param(
    "network.ip",
    "IP_ADDRESS",
    Addresses(),
    (),
    "addresses of the routed interface (venet)",
    tools(
        prlctl=(
            _ipadd("ip"),
            _ipdel("ip"),
            Option("ipset", "IP[/MASK]", "replace all addresses", repeat=True, more=_ADDRESSES.add),
        ),
        vzctl=(_ipadd("ip"), _ipdel("ip")),
    ),
    live=True,
    local=True,
    vzlist="ip",
)
EXT_IP_ADDRESS = Param(
    "network.external_ip",
    "EXT_IP_ADDRESS",
    Addresses(),
    (),
    "external addresses of the routed interface",
    tools(vzctl=(_ipadd("ext_ip"), _ipdel("ext_ip"))),
    live=True,
    local=True,
)
NETIF = Param(
    "network.interfaces",
    "NETIF",
    NetIfs(),
    (),
    "interfaces that are bridged or routed one by one",
    tools(
        prlctl=(
            Option(
                "netif_add",
                "IFNAME",
                "add an interface",
                merge=_NETIFS.add,
                repeat=True,
                kinds=CONTAINERS,
            ),
            Option(
                "netif_del",
                "IFNAME|all",
                "remove an interface",
                merge=_NETIFS.remove,
                repeat=True,
                kinds=CONTAINERS,
            ),
            *_SCOPED_BOTH,
            *_SCOPED_PRLCTL,
        ),
        vzctl=(
            Option(
                "netif_add",
                "IFNAME[,MAC[,HOST_IFNAME[,HOST_MAC]]]",
                "add an interface",
                merge=_NETIFS.add,
                repeat=True,
            ),
            Option(
                "netif_del", "IFNAME|all", "remove an interface", merge=_NETIFS.remove, repeat=True
            ),
            *_SCOPED_BOTH,
            *_SCOPED_VZCTL,
        ),
    ),
    live=True,
    local=True,
    vzlist="netif",
)
NETDEV = Param(
    "network.devices",
    "NETDEV",
    INTERFACES,
    (),
    "interfaces of the node that are moved inside",
    both(
        Option(
            "netdev_add",
            "NAME",
            "move an interface of the node inside",
            merge=INTERFACES.add,
            repeat=True,
            kinds=CONTAINERS,
        ),
        Option(
            "netdev_del",
            "NAME",
            "take it back",
            merge=INTERFACES.remove,
            repeat=True,
            kinds=CONTAINERS,
        ),
    ),
    live=True,
)
HOSTNAME = Param(
    "network.hostname",
    "HOSTNAME",
    Hostname(),
    None,
    "host name inside",
    both(Option("hostname", "NAME", "host name inside")),
    live=True,
    local=True,
    vzlist="hostname",
)
NAMESERVER = Param(
    "network.nameservers",
    "NAMESERVER",
    Nameservers(),
    (),
    "DNS servers",
    both(
        Option(
            "nameserver",
            "IP[,IP...]",
            "DNS servers; replaces them",
            repeat=True,
            more=_NAMESERVERS.add,
        )
    ),
    live=True,
    vzlist="nameserver",
)
SEARCHDOMAIN = Param(
    "network.searchdomains",
    "SEARCHDOMAIN",
    Domains(),
    (),
    "domains to search names in",
    both(
        Option(
            "searchdomain",
            "NAME[,NAME...]",
            "search domains; empty: none",
            repeat=True,
            more=_DOMAINS.add,
        )
    ),
    live=True,
    vzlist="searchdomain",
)
APPLY_IPONLY = Param(
    "network.ip_only",
    "APPLY_IPONLY",
    YesNo(),
    default=False,
    help="leave host name and DNS inside alone",
    options=both(
        Option("apply-iponly", "yes|no", "leave host name and DNS inside alone", kinds=CONTAINERS)
    ),
    live=True,
)
USE_NET_RPS = Param(
    "network.receive_steering",
    "USE_NET_RPS",
    YesNo(),
    None,
    help="spread received packets over CPUs",
    ignored="set rps_cpus of the node's interfaces instead",
)
RATE = Param(
    "network.rates",
    "RATE",
    Rates(),
    (),
    "traffic that is granted, per class",
    tools(
        prlctl=(
            Option(
                "rate",
                "CLASS:KBITS",
                "traffic that is granted; empty: none",
                merge=_RATES.merge_class,
                repeat=True,
            ),
        ),
        vzctl=(
            Option(
                "rate",
                "DEV:CLASS:KBITS",
                "traffic that is granted; empty: none",
                merge=_RATES.merge,
                repeat=True,
            ),
        ),
    ),
    live=True,
)
RATEBOUND = Param(
    "network.rate_bound",
    "RATEBOUND",
    YesNo(),
    default=False,
    help="what is granted is the ceiling as well",
    options=both(Option("ratebound", "yes|no", "what is granted is the ceiling as well")),
    live=True,
)
NETFILTER = Param(
    "network.netfilter",
    "NETFILTER",
    Choice(("disabled", "stateless", "stateful", "full")),
    "full",
    "packet filter inside",
    both(
        Option(
            "netfilter",
            "disabled|stateless|stateful|full",
            "packet filter inside",
            kinds=CONTAINERS,
        )
    ),
)
FIREWALL = Param(
    "network.firewalls",
    "FIREWALL",
    Firewalls(),
    (),
    "packet filter of each interface, on the node's side",
    # Read together, as their order does not count: operations/netdevice.py.
    tools(
        prlctl=(
            Option("fw", "on|off", "filter what passes the interface", scope="netif"),
            Option("fw-policy", "accept|deny", "what happens to the rest", scope="netif"),
            Option("fw-direction", "in|out", "which way policy and rules are for", scope="netif"),
            Option(
                "fw-rule",
                "PROTO LIP LPORT RIP RPORT",
                "the opposite of the policy for these, * is any; empty: no rules",
                scope="netif",
                repeat=True,
            ),
        )
    ),
    live=True,
    local=True,
)
IPTABLES = Param(
    "network.iptables",
    "IPTABLES",
    Text(),
    "",
    "modules of the packet filter (old form of NETFILTER)",
    tools(
        vzctl=(
            Option(
                "iptables",
                "LIST",
                "modules of the packet filter",
                ignored="the packet filter needs no list of modules; use --netfilter",
            ),
        )
    ),
    ignored="the packet filter needs no list of modules",
)
ACTIONS = (
    Option("skip_arpdetect", "", "do not look for the address on the network", ignored=_NO_ARP),
    Option(
        "default_gateway",
        "IP",
        "old form of --gw",
        ignored="give --gw with an interface instead",
    ),
)
_CARDS = ("virtio", "e1000", "rtl")


def _adapter(card: NetIf, text: str) -> NetIf:
    """Keep the model of a machine's card in a pair of ours; virtio is not written."""
    if text not in _CARDS:
        raise BadValue(f"'{text}' is not one of {', '.join(_CARDS)}")
    rest = tuple(pair for pair in card.other if pair[0] != "card")
    return card._replace(other=rest if text == "virtio" else (*rest, ("card", text)))


MACHINE_ONLY = (
    Option(
        "adapter-type",
        "virtio|e1000|rtl",
        "model of the card",
        merge=_adapter,
        scope="netif",
        kinds=MACHINES,
    ),
)
