"""A container that floods: its neighbour stays reachable, and sees nothing that it may not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import flood
from networld import NetWorld, answered, busybox_root, busybox_tar, wait_for
from networld import networld as world

__all__ = ["busybox_root", "busybox_tar", "world"]

COUNT = 3000
CARD = ("--device-add", "net", "--network", "br0", "--ipadd")
MACS = {"flooder": "c4:37:72:00:00:02", "victim": "c4:37:72:00:00:03"}


def within(world: NetWorld, uuid: str, *words: str) -> list[str]:
    """The words that run flood.py in a container's network namespace."""
    state = json.loads((world.root / f"run/pyvz/state/{uuid.strip('{}')}.json").read_text())
    place = f"--net=/proc/{state['pid']}/ns/net"
    return ["nsenter", place, sys.executable, "-IS", str(Path(flood.__file__)), *words]


@contextmanager
def seen(argv: list[str]) -> Iterator[dict[str, int]]:
    """What of a flood is seen meanwhile; filled at the end."""
    found: dict[str, int] = {}
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "ready\n"
        yield found
        found.update(json.loads(watching.communicate(timeout=200)[0]))


def test_a_container_that_floods(world: NetWorld) -> None:
    (world.root / "etc/vz/vz.conf").write_text('VELAYOUT="simfs"\nBROADCAST_LIMIT="50"\n')
    world.at(world.node, "ip", "link", "add", "br0", "type", "bridge")
    world.at(world.node, "ip", "addr", "add", "10.88.0.1/24", "dev", "br0")
    world.at(world.node, "ip", "link", "set", "br0", "up")
    flooder = world.create("flooder", *CARD, "10.88.0.2/24", "--mac", MACS["flooder"])
    victim = world.create("victim", *CARD, "10.88.0.3/24", "--mac", MACS["victim"])
    known = world.at(world.node, "bridge", "fdb", "show", "br", "br0")
    assert f"{MACS['victim']} dev veth72000003 master br0 static" in known
    words = ("eth0", MACS["flooder"], "10.88.0.2", MACS["victim"], str(COUNT))
    with (
        seen(within(world, victim, "watch", "eth0")) as got,
        subprocess.Popen(within(world, flooder, "send", *words)) as flooding,
    ):
        # By the node, which asks for its hardware address anew, and by the flooder itself.
        world.at(world.node, "ip", "neigh", "flush", "dev", "br0")
        assert answered(lambda *x: world.at(world.node, "busybox", *x, code=None), "10.88.0.3")
        assert flooding.wait(280) == 0
        assert "02:66:" not in world.at(world.node, "bridge", "fdb", "show", "br", "br0")
    assert set(got) == {"broadcast"}
    assert 0 < got["broadcast"] < COUNT / 2
    assert world.pings("flooder", "10.88.0.3")
    # Where other hardware addresses may be, the bridge learns them.
    world.prlctl("set", "flooder", "--device-set", "net0", "--macfilter", "off", "--ipfilter",
                 "off")  # fmt: skip
    subprocess.run(within(world, flooder, "send", *words[:-1], "3"), check=True, timeout=200)
    wait_for(lambda: "02:66:" in world.at(world.node, "bridge", "fdb", "show", "br", "br0"))
