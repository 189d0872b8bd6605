"""Steps of the machine test about networks that this kernel alone can show; see guest.py."""

from __future__ import annotations

import errno

from guesttools import NAME, ct, need, run, running, until

ELSEWHERE = "elsewhere"  # the network namespace of a machine at the other end of the card
CARD = "lan9"
ASK = """
import socket, sys
asking = socket.socket()
asking.settimeout(3)
print(asking.connect_ex((sys.argv[1], 9)))
"""


def answers(address: str) -> bool:
    """Whether ADDRESS is there, seen from elsewhere: nobody listens, and it says so."""
    told = run("ip", "netns", "exec", ELSEWHERE, "python3", "-c", ASK, address)
    return int(told) == errno.ECONNREFUSED


def wire() -> None:
    """A card, and at its other end a machine that is in VLAN 100 only."""
    run("ip", "netns", "add", ELSEWHERE)
    run("ip", "link", "add", CARD, "type", "veth", "peer", "name", "wire", "netns", ELSEWHERE)
    for words in (
        ("link", "add", "link", "wire", "name", "tagged", "type", "vlan", "id", "100"),
        ("address", "add", "10.100.0.1/24", "dev", "tagged"),
        ("link", "set", "wire", "up"),
        ("link", "set", "tagged", "up"),
    ):
        run("ip", "-n", ELSEWHERE, *words)


def vlan() -> None:
    """A network that is one VLAN of a card: up with its first use, over a restart of vzd, gone."""
    running()
    wire()
    # The card is down: who makes the network need not know that.
    run("prlsrvctl", "net", "add", "office", "--ifname", CARD, "--vlan", "100")
    need("vlan protocol 802.1Q id 100" in run("ip", "-d", "link", "show", f"{CARD}.100"), "no VLAN")
    need("VLAN" in run("prlsrvctl", "net", "info", "office"), "it is not told")
    run("prlsrvctl", "net", "add", "again", "--ifname", CARD, "--vlan", "100", code=255)
    run("prlctl", "set", NAME, "--device-add", "net", "--network", "office", "--ifname", "office0",
        "--ipadd", "10.100.0.2/24")  # fmt: skip
    need("10.100.0.2/24" in ct("ip", "address", "show", "office0"), "the address is not inside")
    until(lambda: answers("10.100.0.2"), "it is reached by the VLAN", 60)
    need("in use" in run("prlsrvctl", "net", "del", "office", code=255), "deleted while in use")
    run("prlsrvctl", "net", "set", "office", "--vlan", "101", code=255)
    run("systemctl", "restart", "pyvz-vzd.service")
    until(lambda: answers("10.100.0.2"), "it is reached after a restart of vzd", 60)
    run("prlctl", "set", NAME, "--device-del", "net0")
    run("prlsrvctl", "net", "set", "office", "--vlan", "101")
    need("id 101" in run("ip", "-d", "link", "show", f"{CARD}.101"), "it has no other tag")
    run("ip", "link", "show", f"{CARD}.100", code=1)
    run("prlsrvctl", "net", "del", "office")
    run("ip", "link", "show", f"{CARD}.101", code=1)
    run("ip", "link", "del", CARD)
    run("ip", "netns", "del", ELSEWHERE)
