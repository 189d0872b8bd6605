"""Two bridged containers, a routed one and the outside world: everybody reaches everybody."""

from __future__ import annotations

import itertools
from functools import partial

from networld import OUTSIDE4, OUTSIDE6, NetWorld, answered, busybox_root, busybox_tar, wait_for
from networld import networld as world

__all__ = ["busybox_root", "busybox_tar", "world"]

PLACES = {
    "left": ("10.77.8.2", "fd77:0:8::2"),
    "right": ("10.77.8.3", "fd77:0:8::3"),
    "routed": ("10.77.0.1", "fd77::1"),
    "outside": (OUTSIDE4, OUTSIDE6),
}


def at(world: NetWorld, place: str, *argv: str, code: int | None = 0) -> str:
    """Run a program of busybox in the network of a container, or in the outside world."""
    if place == "outside":
        return world.at(world.outside, "busybox", *argv, code=code)
    return world.near(place, "busybox", *argv, code=code)


def serve(world: NetWorld, place: str) -> None:
    if place == "outside":
        (world.root / "www").mkdir()
        (world.root / "www/name").write_text("outside\n")
        world.at(world.outside, "busybox", "httpd", "-p", "80", "-h", str(world.root / "www"))
        return
    world.inside(place, f"mkdir /www; echo {place} >/www/name; httpd -p 80 -h /www")


def test_everybody_reaches_everybody(world: NetWorld) -> None:
    before = world.rules(), world.links()
    node = ("ip", "link", "add", "br0", "type", "bridge"), ("ip", "link", "set", "br0", "up")
    more = (
        ("ip", "addr", "add", "10.77.8.1/24", "dev", "br0"),
        ("ip", "addr", "add", "fd77:0:8::1/64", "dev", "br0", "nodad"),
    )
    for words in (*node, *more):
        world.at(world.node, *words)
    world.cli("prlsrvctl", "net", "add", "lan", "--ifname", "br0")
    for name in ("left", "right"):
        four, six = PLACES[name]
        given = ("--ipadd", f"{four}/24", "--ipadd", f"{six}/64")
        ways = ("--gw", "10.77.8.1", "--gw6", "fd77:0:8::1")
        world.create(name, "--device-add", "net", "--network", "lan", *given, *ways)
    world.create("routed", *(word for x in PLACES["routed"] for word in ("--ipadd", x)))
    try:
        for place in PLACES:
            serve(world, place)
        for one, other in itertools.permutations(PLACES, 2):
            for address in PLACES[other]:
                assert answered(partial(at, world, one, code=None), address), (one, other, address)
                url = f"http://[{address}]/name" if ":" in address else f"http://{address}/name"
                assert at(world, one, "wget", "-q", "-O", "-", url) == f"{other}\n"
    finally:
        pids = world.at(world.node, "ip", "netns", "pids", world.outside).split()
        for pid in pids:
            world.at(world.outside, "kill", pid)
    for name in ("left", "right", "routed"):
        world.prlctl("delete", name, "--force")
    world.cli("prlsrvctl", "net", "del", "lan")
    world.at(world.node, "ip", "link", "del", "br0")
    assert (world.rules(), world.links()) == before


def test_neighbours_are_told_of_an_address(world: NetWorld) -> None:
    """Who had the address before had another hardware address: nobody waits for a timeout."""
    world.at(world.node, "ip", "link", "add", "br0", "type", "bridge")
    world.at(world.node, "ip", "link", "set", "br0", "up")
    card = ("--device-add", "net", "--network", "br0", "--ipadd")
    six = ("--ipadd", "fd88::2/64")
    world.create("a", *card, "10.88.0.2/24", *six, "--mac", "c4:37:72:00:00:01")
    world.create("b", *card, "10.88.0.3/24", "--ipadd", "fd88::3/64")
    for address in ("10.88.0.2", "fd88::2"):
        assert world.pings("b", address)
        assert "c4:37:72:00:00:01" in world.inside("b", "ip", "neigh", "show", address)
    world.prlctl("stop", "a", "--kill")
    world.prlctl("set", "a", "--device-set", "net0", "--mac", "c4:37:72:00:00:02")
    world.prlctl("start", "a")
    # Not asked for: neither of them has sent anything since.
    for address in ("10.88.0.2", "fd88::2"):
        wait_for(
            lambda address=address: (
                "c4:37:72:00:00:02" in world.inside("b", "ip", "neigh", "show", address)
            )
        )
