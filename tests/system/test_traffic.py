"""Traffic of containers with real packets: counted, shaped, filtered, and nothing left."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from networld import NODE4, OUTSIDE4, OUTSIDE6, NetWorld, busybox_root, busybox_tar, end
from networld import networld as world

__all__ = ["busybox_root", "busybox_tar", "world"]

PEER = """\
import fcntl, socket, struct, sys, termios, time
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.create_server((sys.argv[1], int(sys.argv[2])), family=family)
server.settimeout(120)
print("ready", flush=True)
connection, _ = server.accept()
connection.settimeout(120)
began = time.monotonic()
size = int(sys.argv[3])
if size:
    connection.sendall(bytes(size))
    while struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]:
        time.sleep(0.01)
    connection.shutdown(socket.SHUT_WR)
while block := connection.recv(65536):
    size += len(block)
print(size, time.monotonic() - began, flush=True)
"""


class Peer:
    """A server of the outside world for one connection: it sends `size` bytes, then reads."""

    def __init__(self, world: NetWorld, port: int, *, send: int = 0) -> None:
        where = ["nsenter", f"--net=/run/netns/{world.outside}", sys.executable, "-c", PEER]
        self._process = subprocess.Popen(
            [*where, OUTSIDE4, str(port), str(send)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._out = self._process.stdout
        assert self._out.readline() == "ready\n"

    def kbits(self) -> float:
        """What passed, in kbit/s; it has come to its end."""
        size, seconds = self._out.readline().split()
        self._process.wait(60)
        self._out.close()
        return int(size) * 8 / 1000 / float(seconds)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(60)
        self._out.close()


def upload(world: NetWorld, name: str, port: int, kib: int) -> float:
    peer = Peer(world, port)
    line = f"dd if=/dev/zero bs=1k count={kib} 2>/dev/null | busybox nc {OUTSIDE4} {port}"
    world.inside(name, line)
    return peer.kbits()


def download(world: NetWorld, name: str, port: int, kib: int) -> float:
    peer = Peer(world, port, send=kib * 1024)
    world.inside(name, f"busybox nc {OUTSIDE4} {port} </dev/null >/dev/null")
    return peer.kbits()


def connects(world: NetWorld, name: str, port: int) -> bool:
    """Whether a container's TCP connection to the outside world is made."""
    peer = Peer(world, port)
    line = f"echo x | busybox nc -w 10 {OUTSIDE4} {port}"
    world.inside(name, line, code=None)
    try:
        peer._process.wait(10)  # the other end has been accepted by the kernel, or never will be
    except subprocess.TimeoutExpired:
        return False
    finally:
        peer.stop()
    return True


def traffic(world: NetWorld, name: str) -> dict[str, list[int]]:
    """Class -> bytes and packets in, bytes and packets out."""
    found = {}
    for line in world.prlctl("statistics", name, "--filter", "net.classful.traffic").splitlines():
        number, *values = line.partition(":")[2].split()
        found[number] = list(map(int, values))
    return found


def classes(world: NetWorld) -> None:
    (world.root / "etc/vz/conf").mkdir(parents=True, exist_ok=True)
    text = "# ours\n1 0.0.0.0/0\n1 ::/0\n2 10.99.0.2/32\n0 10.99.0.1/32\n"
    (world.root / "etc/vz/conf/networks_classes").write_text(text)


def test_traffic_is_counted_by_class_and_over_restarts(world: NetWorld) -> None:
    classes(world)
    before = world.rules(), world.links()
    world.create("a", "--ipadd", "10.77.0.1", "--ipadd", "fd77::1")
    assert world.pings("a", OUTSIDE4, "-s", "1000")
    assert world.pings("a", OUTSIDE6)
    assert world.pings("a", NODE4)
    first = traffic(world, "a")
    octets, packets, _, sent = first["2"]
    assert 1000 * packets < octets < 1200 * packets
    assert 0 < packets <= sent
    assert first["0"][1] > 0
    assert first["1"][1] > 0  # IPv6
    # vzd dies, the container restarts: nothing is lost and nothing counts twice.
    end(world.vzd(), signal.SIGKILL)
    assert traffic(world, "a")["2"] == first["2"]
    world.prlctl("restart", "a")
    assert traffic(world, "a")["2"] == first["2"]
    assert world.pings("a", OUTSIDE4, "-s", "1000")
    octets, packets, *_ = traffic(world, "a")["2"]
    assert packets > first["2"][1]
    world.prlctl("stop", "a", "--kill")
    assert traffic(world, "a")["2"][1] == packets
    table = world.cli("vznetstat", "-c", "2", "-4", "-r").splitlines()
    assert table[0].split()[:2] == ["UUID", "Net.Class"]
    assert list(map(int, table[1].split()[1:4])) == [2, octets, packets]
    assert len(world.cli("vznetstat").splitlines()) == 1  # counted from zero again
    assert (world.rules(), world.links()) == before


@pytest.mark.long
def test_rates_hold_in_both_directions(world: NetWorld) -> None:
    (world.root / "etc/vz/vz.conf").write_text(
        'VELAYOUT="simfs"\nTRAFFIC_SHAPING="yes"\nBANDWIDTH="up0:1000000"\n'
        'TOTALRATE="*:1:200000"\nRATE="*:1:1000"\n'
    )
    before = world.rules(), world.links()
    world.create("a", "--ipadd", "10.77.0.1")
    world.create("b", "--ipadd", "10.77.0.2", "--rate", "1:2000", "--ratebound", "yes")
    free = upload(world, "a", 5001, 8192), download(world, "a", 5002, 8192)
    bound = upload(world, "b", 5003, 512), download(world, "b", 5004, 512)
    # How slow a busy machine is says nothing; that nobody gets more than his rate does.
    for measured, unshaped in zip(bound, free, strict=True):
        assert measured < 4000
        assert unshaped > 3 * measured
    # Live: eight times the rate, no bound, off for the whole node and on again.
    world.prlctl("set", "b", "--rate", "1:16000")
    assert upload(world, "b", 5005, 2048) > 1.5 * bound[0]
    world.prlctl("set", "b", "--ratebound", "no")
    assert download(world, "b", 5006, 4096) > 1.5 * bound[1]
    world.cli("prlsrvctl", "set", "--shaping", "off")
    assert "htb" not in world.at(world.node, "tc", "qdisc")
    assert not [name for name in world.links() if name.startswith("ifb")]
    world.cli("prlsrvctl", "set", "--shaping", "on", "--add-network-class", "3:10.88.0.0/16",
              "--add-shaping-entry", "*:3:500:10")  # fmt: skip
    assert world.at(world.node, "tc", "qdisc").count("htb") == 3
    assert "restarted" in world.cli("prlsrvctl", "tc", "restart")
    world.prlctl("stop", "b", "--kill")
    assert upload(world, "a", 5007, 1024) > 1.5 * bound[0]
    world.prlctl("stop", "a", "--kill")
    assert (world.rules(), world.links()) == before


@pytest.mark.long
def test_firewall_of_an_interface(world: NetWorld) -> None:
    world.create("a", "--ipadd", "10.77.0.1", "--ipadd", "fd77::1")
    set_ = ("set", "a", "--device-set", "venet0")
    assert world.reached("10.77.0.1")
    world.prlctl(*set_, "--fw", "on", "--fw-policy", "deny", "--fw-direction", "in")
    assert not world.answering(("", "10.77.0.1"), ("", "fd77::1"))
    # What it asks for itself is answered.
    assert world.pings("a", OUTSIDE4)
    assert world.pings("a", OUTSIDE6)
    assert connects(world, "a", 6001)
    # A hole: ping from the outside world only.
    world.prlctl(*set_, "--fw-direction", "in", "--fw-rule", f"icmp * * {OUTSIDE4} *")
    assert world.reached("10.77.0.1")
    assert not world.answering(("", "fd77::1"))
    # Outward: everything but one port.
    world.prlctl(*set_, "--fw-direction", "out", "--fw-policy", "accept", "--fw-rule",
                 f"tcp * * {OUTSIDE4} 6002")  # fmt: skip
    assert not connects(world, "a", 6002)
    assert connects(world, "a", 6003)
    end(world.vzd(), signal.SIGKILL)
    world.prlctl("restart", "a")
    assert not world.answering(("", "fd77::1"))
    assert not connects(world, "a", 6004 - 2)
    world.prlctl(*set_, "--fw", "off")
    assert world.reached("fd77::1")
    assert connects(world, "a", 6002)
    # Nonsense changes nothing.
    rules = world.rules()
    for bad in ("tcp * 22 *", "xyz * * * *", "tcp * 70000 * *", "icmp * 1 * *", "* 1.2.3 * * *"):
        world.prlctl(*set_, "--fw-direction", "in", "--fw-rule", bad, code=1)
    world.prlctl(*set_, "--fw-policy", "deny", code=1)
    assert world.rules() == rules
    world.prlctl("stop", "a", "--kill")
    assert world.rules() == ""
