"""Interfaces step by step: taps, cutting off and joining again, and a death at any step."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine import wait_for
from netsteps import OPERSTATES, dying_at, within
from pyvz.container import netns
from pyvz.container.runtime import NetworkAccess
from pyvz.linux import libnftables
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.network.links import Links
from pyvz.operations import network, vmcard
from pyvz.operations.node import Node
from worlds import make_node

pytestmark = pytest.mark.requires("program:nft", "program:ip")

UUID = "11111111-2222-4333-8444-555555555555"
MOST = 200  # more steps than any change has
BRIDGED = "ifname=eth0,mac=c4:37:72:00:00:01,network=br0,ip=10.88.0.2/255.255.255.0"
ONE = Config.parse({"IP_ADDRESS": "10.77.0.1 fd77::1", "NETIF": BRIDGED})
OTHER = Config.parse(
    {
        "IP_ADDRESS": "10.77.0.2 10.99.0.8 fd77::1",
        "NETIF": f"{BRIDGED},ip6=fd88::2/64;ifname=eth1,mac=c4:37:72:00:00:02,network=br0",
        "FIREWALL": "ifname=eth0,fw=on,in=deny",
    }
)
CARDS = Config.parse({"NETIF": BRIDGED.replace("c4:37:72", "00:1c:42")})


@pytest.fixture
def world(short_root: Path) -> Iterator[tuple[str, str]]:
    """A node's namespace with a bridge and a card, and one that plays a container."""
    node, inner = f"{short_root.name}s", f"{short_root.name}i"
    for name in (node, inner):
        _ip("netns", "add", name)
    _ip("-n", node, "link", "add", "br0", "type", "bridge")
    _ip("-n", node, "link", "set", "br0", "up")
    _ip("-n", node, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    _ip("-n", node, "addr", "add", "10.99.0.1/24", "dev", "up0")
    _ip("-n", node, "link", "set", "up0", "up")
    yield node, inner
    for name in (node, inner):
        _ip("netns", "del", name)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=120)
    return done.stdout


class Work:
    """What operations do for one environment, with a namespace in the place of a container."""

    def __init__(self, root: Path, world: tuple[str, str], kind: Kind = Kind.CT) -> None:
        self.node: Node = make_node(root)
        (self.node.paths.vz_conf).write_text('SKIP_ARPDETECT="yes"\n')
        self.where, self.inner = world
        self.env = Environment(UUID, UUID, "a", kind, root / "home")

    def do(self, work: Callable[[], object], step: int = 0) -> int:
        def counted() -> None:
            if step:
                dying_at(step)
            try:
                work()
            except BaseException:
                traceback.print_exc()
                raise

        return within(self.where, counted)

    def access(self, undo: ExitStack) -> NetworkAccess:
        """The way inside, as the keeper makes it (the caller is a child that enters and ends)."""
        fd = os.open(f"/run/netns/{self.inner}", os.O_RDONLY)
        undo.callback(os.close, fd)
        sock = netns._route_socket(fd)
        undo.callback(os.close, sock)
        return NetworkAccess(0, fd, sock)

    def start(self, config: Config = ONE, *, plugged: bool = True) -> None:
        with ExitStack() as undo:
            network.furnish(self.node, self.env, config, self.access(undo), plugged=plugged)

    def change(self, old: Config, new: Config) -> None:
        runtime = self.node.runtime
        with ExitStack() as undo:
            access = self.access(undo)

            class Way:
                def __enter__(self) -> NetworkAccess:
                    return access

                def __exit__(self, *_: object) -> None:
                    pass

            runtime.network = lambda _uuid: Way()  # type: ignore[assignment,return-value]
            with ExitStack() as changed:
                network.change(self.node, self.env, old, new, changed)
                changed.pop_all()

    def seen(self) -> tuple[str, ...]:
        """Everything that there is on the node and inside, but what changes by itself."""
        rules = within_output(self.where, "nft", "-s", "list", "ruleset")
        # In which order sets and chains were made says nothing.
        rules = "\n".join(
            sorted(
                " ".join(sorted(line.replace(",", "").split()))
                for line in rules.splitlines()
                if "token-" not in line
            )
        )
        links = sorted(
            x.split()[0].partition("@")[0]
            for x in _ip("-n", self.where, "-br", "link").splitlines()
        )
        routes = [
            line.replace(" linkdown", "").strip()
            for version in ("-4", "-6")
            for line in sorted(_ip("-n", self.where, version, "route").splitlines())
            if "fe80::/64" not in line
        ]
        proxies = _ip("-n", self.where, "neigh", "show", "proxy")
        stations = within_output(self.where, "bridge", "fdb", "show", "br", "br0")
        links += sorted(x.strip() for x in stations.splitlines() if x.strip().endswith("static"))
        inside = sorted(
            word.partition("@")[0]
            for line in _ip("-n", self.inner, "-br", "addr").splitlines()
            for word in line.split()
            if "fe80" not in word and word not in OPERSTATES  # which come by and by
        )
        ways = sorted(
            x.replace(" linkdown", "").strip() for x in _ip("-n", self.inner, "route").splitlines()
        )
        return (*links, *routes, proxies, *inside, *ways, rules)

    def empty(self) -> None:
        """What the end of a container does: its namespace goes, with everything in it."""
        _ip("netns", "del", self.inner)
        _ip("netns", "add", self.inner)


def within_output(where: str, *argv: str) -> str:
    return subprocess.run(
        ["nsenter", f"--net=/run/netns/{where}", *argv],
        check=True, capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip


def test_death_while_a_container_starts(short_root: Path, world: tuple[str, str]) -> None:
    work = Work(short_root / "n", world)
    before = work.seen()
    for step in range(1, MOST):
        code = work.do(work.start, step)
        assert code in {0, -signal.SIGKILL}, step
        if code == 0:
            assert step > 12
            assert "veth72000001" in work.seen()
        work.empty()
        assert work.do(lambda: network.clean(work.node, UUID)) == 0, step
        assert work.seen() == before, step
        if code == 0:
            return
    pytest.fail("it has no end")


@pytest.mark.parametrize(("old", "new"), [(ONE, OTHER), (OTHER, ONE)], ids=["more", "less"])
def test_death_while_a_container_changes(
    short_root: Path, world: tuple[str, str], old: Config, new: Config
) -> None:
    work = Work(short_root / "n", world)
    before = work.seen()
    assert work.do(lambda: work.start(new)) == 0
    wanted = work.seen()
    work.empty()
    assert work.do(lambda: network.clean(work.node, UUID)) == 0
    for step in range(1, MOST, 3):
        assert work.do(lambda: work.start(old)) == 0
        code = work.do(lambda: work.change(old, new), step)
        assert code in {0, -signal.SIGKILL}, step
        # What was asked for is asked for again: the next `set` gets there from wherever it is.
        assert work.do(lambda: work.change(old, new)) == 0, step
        assert work.seen() == wanted, step
        work.empty()
        assert work.do(lambda: network.clean(work.node, UUID)) == 0, step
        assert work.seen() == before, step
        if code == 0:
            assert step > 5
            return
    pytest.fail("it has no end")


def test_death_while_a_container_stops(short_root: Path, world: tuple[str, str]) -> None:
    work = Work(short_root / "n", world)
    before = work.seen()
    for step in range(1, MOST):
        assert work.do(lambda: work.start(OTHER)) == 0
        code = work.do(lambda: network.clean(work.node, UUID), step)
        assert code in {0, -signal.SIGKILL}, step
        work.empty()
        assert work.do(lambda: network.clean(work.node, UUID)) == 0, step
        assert work.seen() == before, step
        if code == 0:
            return
    pytest.fail("it has no end")


def test_a_container_is_cut_off_and_joins_again(short_root: Path, world: tuple[str, str]) -> None:
    work = Work(short_root / "n", world)
    before = work.seen()
    assert work.do(lambda: work.start(plugged=False)) == 0
    apart = work.seen()
    assert "master br0" not in _ip("-n", work.where, "link", "show", "veth72000001")
    assert "10.77.0.1" not in _ip("-n", work.where, "route")
    assert "10.88.0.2/24" in work.seen()
    assert work.do(lambda: network.plug(work.node, UUID)) == 0
    joined = work.seen()
    assert "master br0" in _ip("-n", work.where, "link", "show", "veth72000001")
    assert "10.77.0.1" in _ip("-n", work.where, "route")
    assert work.do(lambda: network.unplug(work.node, UUID)) == 0
    assert work.do(lambda: network.unplug(work.node, UUID)) == 0
    assert work.seen() == apart
    assert work.do(lambda: network.plug(work.node, UUID)) == 0
    assert work.seen() == joined
    work.empty()
    assert work.do(lambda: network.clean(work.node, UUID)) == 0
    assert work.seen() == before


@pytest.mark.requires("program:ip")
def test_cards_of_a_virtual_machine(short_root: Path, world: tuple[str, str]) -> None:
    work = Work(short_root / "n", world, Kind.VM)
    before = work.seen()

    def run() -> None:
        [card] = vmcard.make(work.node, work.env, CARDS)
        assert card.mac == "00:1c:42:00:00:01"
        assert card.tap in work.seen()
        network.plug(work.node, UUID)
        assert "master br0" in _ip("-n", work.where, "link", "show", card.tap)
        assert f'iifname "{card.tap}"' in work.seen()[-1] or card.tap in work.seen()[-1]
        # It may send as itself, and as nobody else.
        wait_for(lambda: _passes(work.where, card.fd, "001c42000001", "10.88.0.2"))
        assert not _passes(work.where, card.fd, "001c42000009", "10.88.0.2")
        assert not _passes(work.where, card.fd, "001c42000001", "10.88.0.9")
        more = CARDS.changed(
            {"network.interfaces": (*CARDS.network.interfaces, *_second().network.interfaces)}
        )
        with ExitStack() as undo:
            found = vmcard.change(work.node, work.env, CARDS, more, undo)
            assert [x.mac for x in found.added] == ["00:1c:42:00:00:02"]
            assert found.gone == ()
        assert found.added[0].tap not in work.seen()  # taken back
        network.clean(work.node, UUID)
        assert Links(work.node.paths).applied(UUID) is None

    assert work.do(run) == 0
    assert work.seen() == before


def _second() -> Config:
    return Config.parse({"NETIF": "ifname=eth1,mac=00:1c:42:00:00:02,network=br0"})


def _passes(where: str, tap: int, mac: str, address: str) -> bool:
    """Whether an ARP request sent by the guest reaches the node's bridge."""
    sock = _listen("br0")
    try:
        ip = bytes(int(x) for x in address.split("."))
        frame = bytes.fromhex(f"ffffffffffff{mac}08060001080006040001{mac}")
        os.write(tap, bytes(10) + frame + ip + bytes(6) + bytes([10, 88, 0, 1]) + bytes(18))
        sock.settimeout(0.5)
        try:
            while True:
                got = sock.recv(2048)
                if got[6:12] == bytes.fromhex(mac) and got[28:32] == ip:
                    return True
        except TimeoutError:
            return False
    finally:
        sock.close()


def _listen(device: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    sock.bind((device, 0x0806))
    return sock


def test_a_node_without_the_library(short_root: Path, world: tuple[str, str]) -> None:
    """nft does the same as libnftables."""
    work = Work(short_root / "n", world)
    before = work.seen()
    assert work.do(work.start) == 0
    wanted = work.seen()
    work.empty()
    assert work.do(lambda: network.clean(work.node, UUID)) == 0

    def by_program(what: Callable[[], object]) -> None:
        libnftables.run = lambda _commands: None  # type: ignore[assignment]
        what()

    assert work.do(lambda: by_program(work.start)) == 0
    assert work.seen() == wanted
    work.empty()
    assert work.do(lambda: by_program(lambda: network.clean(work.node, UUID))) == 0
    assert work.seen() == before
