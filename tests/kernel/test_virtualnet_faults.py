"""A daemon that dies at any step of a change of networks: the next start makes the node whole."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netsteps import OPERSTATES, dying_at, within
from pyvz.operations import virtualnet
from pyvz.operations.node import Node
from pyvz.store.networks import Networks
from worlds import make_node

pytestmark = pytest.mark.requires("program:dnsmasq", "program:nft", "program:ip")

SHARED = (("type", "shared"), ("ip", "10.66.0.1/24"), ("nat-tcp-add", "web,10.66.0.9,80,80"))
CARD = (("ifname", "up0"), ("force", "on"))
MOST = 200  # more steps than any change has


@pytest.fixture
def namespace(short_root: Path) -> Iterator[str]:
    """A network namespace with a card that has an address and a route."""
    name = f"{short_root.name}f"
    _ip("netns", "add", name)
    inside = ("-n", name)
    _ip(*inside, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    _ip(*inside, "addr", "add", "10.99.0.1/24", "dev", "up0")
    _ip(*inside, "link", "set", "up0", "up")
    _ip(*inside, "link", "set", "up1", "up")
    _ip(*inside, "route", "add", "default", "via", "10.99.0.2")
    yield name
    _ip("netns", "del", name)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=120)
    return done.stdout


def state(namespace: str) -> tuple[str, ...]:
    """Everything of the node's network that could be left behind."""
    where = ("nsenter", f"--net=/run/netns/{namespace}")
    rules = subprocess.run(
        [*where, "nft", "list", "ruleset"], check=True, capture_output=True, text=True, timeout=120
    )
    links = sorted(line.split()[0] for line in _ip("-n", namespace, "-br", "link").splitlines())
    routes = _ip("-n", namespace, "route").replace(" proto static", "").replace(" linkdown", "")
    addresses = _ip("-n", namespace, "-4", "-br", "addr", "show", "up0").split()
    # The states of links come by and by.
    return rules.stdout, *links, routes, *(x for x in addresses if x not in OPERSTATES)


@pytest.mark.parametrize("settings", [SHARED, CARD], ids=["shared", "card"])
def test_death_while_a_network_is_made(
    short_root: Path, namespace: str, settings: tuple[tuple[str, str], ...]
) -> None:
    node = make_node(short_root / "n")
    before = state(namespace)
    for step in range(1, MOST, 2):
        code = within(namespace, lambda step=step: _add(node, step, settings))  # type: ignore[misc]
        assert code in {0, -signal.SIGKILL}, step
        assert within(namespace, lambda: _repair(node)) == 0, step
        made = [each.name for each in Networks(node.paths).stored()]
        if made:
            _check_up(namespace, settings)
            assert within(namespace, lambda: virtualnet.delete(node, "x")) == 0, step
        assert state(namespace) == before, step
        if code == 0:
            return
    pytest.fail("it has no end")


def test_death_while_a_network_goes(short_root: Path, namespace: str) -> None:
    node = make_node(short_root / "n")
    before = state(namespace)
    for step in range(1, MOST):
        assert within(namespace, lambda: virtualnet.add(node, "x", CARD) and None) == 0
        code = within(namespace, lambda step=step: _delete(node, step))  # type: ignore[misc]
        assert code in {0, -signal.SIGKILL}, step
        assert within(namespace, lambda: _repair(node)) == 0, step
        if Networks(node.paths).stored():
            _check_up(namespace, CARD)
            assert within(namespace, lambda: virtualnet.delete(node, "x")) == 0, step
        assert state(namespace) == before, step
        if code == 0:
            return
    pytest.fail("it has no end")


def _add(node: Node, step: int, settings: tuple[tuple[str, str], ...]) -> None:
    dying_at(step)
    virtualnet.add(node, "x", settings)


def _delete(node: Node, step: int) -> None:
    dying_at(step)
    virtualnet.delete(node, "x")


def _repair(node: Node) -> None:
    assert virtualnet.bring_up(node) == []


def _check_up(namespace: str, settings: tuple[tuple[str, str], ...]) -> None:
    bridges = _ip("-n", namespace, "-br", "-4", "addr", "show", "type", "bridge")
    if settings is SHARED:
        assert "10.66.0.1/24" in bridges
        return
    assert "10.99.0.1/24" in bridges
    assert "default via 10.99.0.2 dev br0" in _ip("-n", namespace, "route")
