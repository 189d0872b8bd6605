"""What a guest with cloud-init is told about itself: a NoCloud seed, made at each start.

meta-data        who it is: another instance-id makes cloud-init begin anew, so it is the UUID
user-data        host name, SSH keys, passwords, the guest agent
network-config   cards by their MAC address (version 2), at each boot

All three are YAML; JSON is that, too, and nothing in it has to be quoted by us.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from ipaddress import ip_interface, ip_network
from typing import Final

from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_net import NetIf
from pyvz.network.base import GATEWAY6
from pyvz.operations import cloudpassword, machinefiles
from pyvz.operations.machinedrives import Opened
from pyvz.vm import cidata
from pyvz.vm.spec import DriveSpec

PLACE: Final = 8  # on the bus of virtio-scsi, behind all that a configuration can put there
AGENT: Final = "qemu-guest-agent"
_ALL4, _ALL6 = "0.0.0.0/0", "::/0"
_START: Final = f"systemctl start {AGENT}.service || service {AGENT} start || :"
# A user that is not there yet comes with the first boot, and gets the password then.
_CHANGE: Final = 'if getent passwd "$1" >/dev/null; then usermod -p "$2" "$1"; fi'

Data = dict[str, object]


def with_seed(env: Environment, config: Config, drives: Opened, opened: ExitStack) -> Opened:
    """Return DRIVES with the seed as one more CD, if it is wanted; OPENED closes the descriptor."""
    if not config.machine.cloud_init:
        return drives
    passwords = cloudpassword.passwords(env)
    descriptor = cidata.opened(cidata.volume(files(env.uuid, env.name, config, passwords)))
    opened.callback(os.close, descriptor)
    drive = DriveSpec(cidata.LABEL, "scsi", PLACE, file=f"/dev/fdset/{descriptor}", readonly=True)
    return drives._replace(
        drives=(*drives.drives, drive), descriptors=(*drives.descriptors, descriptor)
    )


def files(
    uuid: str, name: str, config: Config, passwords: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return {name: content} of the seed; PASSWORDS: hashes, by user."""
    host = config.network.hostname or name
    return {
        "meta-data": _text({"instance-id": uuid, "local-hostname": host}),
        "user-data": "#cloud-config\n" + _text(_user_data(host, config) | _passwords(passwords)),
        "network-config": _text(_network(config)),
    }


def _text(data: Data) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _user_data(host: str, config: Config) -> Data:
    short = host.partition(".")[0]
    made: Data = {"hostname": short}
    if short != host:
        made["fqdn"] = host
    made["manage_etc_hosts"] = "localhost"  # its own name leads to 127.0.1.1, all else stays
    # By itself it looks at the cards only at the first boot of an instance.
    made["updates"] = {"network": {"when": ["boot-new-instance", "boot"]}}
    if config.machine.ssh_keys:
        made["ssh_authorized_keys"] = list(config.machine.ssh_keys)
        made["disable_root"] = False  # they let in as root, not only as the image's own user
    if _cards(config):
        made["packages"] = [AGENT]
    made["runcmd"] = [["sh", "-c", _START]]
    return made


def _passwords(hashes: Mapping[str, str] | None) -> Data:
    """Return what sets passwords: with the users at the first boot, by a command at a later one."""
    if not hashes:
        return {}
    users = [{"name": user, "password": text, "type": "hash"} for user, text in hashes.items()]
    commands = []
    for user, text in hashes.items():
        once = f"pyvz-password-{hashlib.sha256(f'{user}:{text}'.encode()).hexdigest()[:16]}"
        words = ["sh", "-c", _CHANGE, "sh", user, text]
        commands.append(["cloud-init-per", "instance", once, *words])
    return {"chpasswd": {"expire": False, "users": users}, "bootcmd": commands}


def _cards(config: Config) -> dict[int, NetIf]:
    """Return the cards that are to be configured, by their number."""
    cards = [nic for nic in config.network.interfaces if nic.ifname != "venet0"]
    return {index: nic for index, nic in enumerate(cards) if nic.configure != "none"}


def _network(config: Config) -> Data:
    cards = _cards(config)
    made: Data = {}
    for index, nic in cards.items():
        name, first = f"eth{index}", index == min(cards)
        card = {"match": {"macaddress": nic.mac.lower()}, "set-name": name, **_card(nic, first)}
        if first and (servers := _name_servers(config)):
            card["nameservers"] = servers
        made[name] = card
    return {"version": 2, "ethernets": made}


def _name_servers(config: Config) -> Data:
    network = config.network
    made: Data = {"addresses": list(network.nameservers or ())}
    made["search"] = list(network.searchdomains or ())
    return {name: value for name, value in made.items() if value}


def _card(nic: NetIf, first: bool) -> Data:  # noqa: FBT001
    made: Data = {"dhcp4": nic.dhcp, "dhcp6": nic.dhcp6}
    if not nic.dhcp:
        made["optional"] = True  # nobody waits for it at the boot
    addresses, routes = _of_version4(nic, first)
    for address in nic.ip6:
        addresses.append(machinefiles.with_length(nic, address))
    if nic.gw6:
        routes.append({"to": _ALL6, "via": nic.gw6, "on-link": True})
    elif nic.type == "routed" and nic.ip6 and first:
        routes.append({"to": _ALL6, "via": GATEWAY6})
    return made | {n: v for n, v in (("addresses", addresses), ("routes", routes)) if v}


def _of_version4(nic: NetIf, first: bool) -> tuple[list[str], list[Data]]:  # noqa: FBT001
    """Return the addresses and routes of IPv4.

    On a routed card the node answers, whoever is asked for (proxy ARP).  Not every system of
    cloud-init's can be told of a route without a gateway, or of one outside of the card's network;
    but all know the smallest network there is, and its other address is as good as any.
    """
    addresses = [machinefiles.with_length(nic, address) for address in nic.ip]
    if nic.gw and nic.type != "routed":
        return addresses, [{"to": _ALL4, "via": nic.gw, "on-link": True}]
    if nic.type != "routed" or not addresses or not first:
        return addresses, []
    own = {str(ip_interface(text).ip) for text in addresses}
    for length in range(31, 0, -1):
        around = ip_network(f"{nic.ip[0].ip}/{length}", strict=False)
        other = next((str(each) for each in around.hosts() if str(each) not in own), None)
        if other is not None:
            addresses[0] = f"{nic.ip[0].ip}/{length}"
            return addresses, [{"to": _ALL4, "via": other}]
    return addresses, []
