"""script/bench network: what the network of a container costs, beside the kernel and Incus.

    start       the start of a container with one routed and one bridged interface, and without
    addresses   adding the first, the 10th, ... the 1000th address to a running container
    throughput  TCP by iperf3: container to container, and to another namespace, on a bridge and
                routed; beside a bare pair of links, a bridge without us, and Incus' bridge

All of it in network namespaces of its own; the machine's network is left alone.  Medians; the runs
of what is compared alternate, so that a slow moment hits all of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.incus import Incus
from bench.measure import say
from bench.peer import Place, processor_time, unmount_below
from pyvz.cli import client

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from images import make_busybox
from networld import TEMPLATE, NetWorld

SECONDS = 3  # of one run of iperf3
CURVE = (1, 10, 100, 300, 1000)


@contextmanager
def world(work: Path) -> Iterator[NetWorld]:
    """A node with a template of busybox and iperf3, and its world outside."""
    root = Path(tempfile.mkdtemp(prefix="n", dir=work))
    tree = work / "tree"
    if not tree.exists():
        tree.mkdir()
        make_busybox(tree)
        add_program(tree, "iperf3")
    cache = root / "vz/template/cache"
    cache.mkdir(parents=True)
    archive = cache / f"{TEMPLATE}.plain.tar.zst"
    pack = ["tar", "--create", "--zstd", "--numeric-owner", "--owner=0", "--group=0"]
    subprocess.run([*pack, "--file", archive, "--directory", tree, "."], check=True)
    (root / "etc/vz").mkdir(parents=True)
    (root / "etc/vz/vz.conf").write_text('VELAYOUT="simfs"\n')
    made = NetWorld(root)
    (root / "run").mkdir()
    # As on every node: what is there does not outlive the kernel.
    subprocess.run(["mount", "-t", "tmpfs", "none", root / "run"], check=True)
    try:
        made.wire()
        yield made
    finally:
        made.end()
        unmount_below(root)


def add_program(tree: Path, name: str) -> None:
    """A program of the node with its libraries."""
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"bench: {name} is not installed")
    told = subprocess.run(["ldd", found], check=True, capture_output=True, text=True).stdout
    libraries = [word for line in told.splitlines() for word in line.split() if "/" in word]
    for path in (found, *libraries):
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(path).resolve(), target)
        target.chmod(0o755)


class Daemon:
    """Calls of vzd without a command line's process."""

    def __init__(self, made: NetWorld) -> None:
        made.prlctl("list")
        self.connection = client.connect(str(made.root))

    def timed(self, method: str, **params: object) -> float:
        """Milliseconds of one call."""
        begin = time.perf_counter()
        self.connection.stream(method, **params)
        return (time.perf_counter() - begin) * 1e3

    def set(self, name: str, *options: tuple[str, str]) -> float:
        """Milliseconds of one `set`."""
        given = [{"name": key, "value": value} for key, value in options]
        begin = time.perf_counter()
        self.connection.call(
            "io.pyvz.Environment.Set", ref=name, dialect="prlctl", options=given, save=True
        )
        return (time.perf_counter() - begin) * 1e3


def start(work: Path, runs: int) -> list[str]:
    """The start of a container with two interfaces, and of one without."""
    with world(work) as made:
        made.at(made.node, "ip", "link", "add", "br0", "type", "bridge")
        made.at(made.node, "ip", "link", "set", "br0", "up")
        made.create("without", start=False)
        made.create("with", "--ipadd", "10.77.0.1", "--ipadd", "fd77::1", start=False)
        made.prlctl("set", "with", "--device-add", "net", "--network", "br0",
                    "--ipadd", "10.88.0.2/24", "--gw", "10.88.0.1")  # fmt: skip
        daemon = Daemon(made)
        seen: dict[str, list[float]] = {"without": [], "with": []}
        for number in range(runs + 1):
            for name, values in seen.items():
                spent = daemon.timed("io.pyvz.Environment.Start", ref=name)
                if number:  # the first of each loads libraries
                    values.append(spent)
                daemon.timed("io.pyvz.Environment.Stop", ref=name, kill=True)
    bare, full = (statistics.median(seen[name]) for name in ("without", "with"))
    least, most = (min(seen[name]) for name in ("without", "with"))
    return [
        f"start without interfaces    {bare:7.1f} ms, at best {least:.1f}",
        f"start with venet and veth   {full:7.1f} ms, at best {most:.1f}"
        f"   (+{full - bare:.1f} ms, {full / bare:.2f}; at best +{most - least:.1f} ms)",
    ]


def addresses(work: Path, runs: int) -> list[str]:
    """One more address for a running container that has many."""
    lines = []
    with world(work) as made:
        made.create("many")
        daemon = Daemon(made)
        daemon.set("many", ("ipadd", "10.77.255.1"))  # the interface itself
        have, first, least = 1, 0.0, 0.0
        for wanted in CURVE:
            missing = [f"10.77.{n >> 8}.{n & 255}" for n in range(have + 256, wanted + 256)]
            if missing:
                daemon.set("many", *(("ipadd", each) for each in missing))
                have += len(missing)
            spent, worked = [], 0.0
            for _ in range(runs):
                before = processor_time(made.vzd())
                spent.append(daemon.set("many", ("ipadd", "10.77.254.1")))
                worked += (processor_time(made.vzd()) - before) * 1e3
                daemon.set("many", ("ipdel", "10.77.254.1"))
            median, worked = statistics.median(spent), worked / runs
            first, least = first or median, least or worked
            lines.append(
                f"one address beside {have:5d}     {median:7.1f} ms   ({median / first:.2f})"
                f"   vzd's CPU time {worked:5.1f} ms ({worked / least:.2f})"
            )
    return lines


class Iperf:
    """Pairs of a server and a client, each as a way to run a program somewhere."""

    def __init__(self) -> None:
        self.pairs: dict[str, tuple[list[str], list[str], str]] = {}

    def add(self, name: str, server: Sequence[str], sender: Sequence[str], target: str) -> None:
        """server, sender: words before iperf3's own."""
        self.pairs[name] = (list(server), list(sender), target)

    def run(self, runs: int) -> dict[str, list[float]]:
        """Gbit/s of each pair, in turn."""
        seen: dict[str, list[float]] = {name: [] for name in self.pairs}
        for _ in range(runs):
            for name, (server, sender, target) in self.pairs.items():
                say(f"throughput: {name}")
                seen[name].append(self.once(server, sender, target))
        return seen

    def once(self, server: list[str], sender: list[str], target: str) -> float:
        """One transfer."""
        with subprocess.Popen(
            [*server, "iperf3", "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as listening:
            try:
                for _ in range(40):
                    done = subprocess.run(
                        [*sender, "iperf3", "-J", "-t", str(SECONDS), "-c", target],
                        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
                    )  # fmt: skip
                    told = json.loads(done.stdout or "{}").get("end", {}).get("sum_received")
                    if told:
                        return float(told["bits_per_second"]) / 1e9
                    time.sleep(0.25)
            finally:
                listening.kill()
        raise RuntimeError(done.stdout + done.stderr)


def bare(undo: ExitStack, prefix: str, iperf: Iperf) -> None:
    """Two namespaces with one pair between them, and two on a bridge: what the kernel gives."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    for letter in "abcdB":
        name = f"{prefix}{letter}"
        ip("netns", "add", name)
        undo.callback(ip, "netns", "del", name)
    ip("-n", f"{prefix}a", "link", "add", "e", "type", "veth", "peer", "e", "netns", f"{prefix}b")
    ip("-n", f"{prefix}B", "link", "add", "sw", "type", "bridge")
    ip("-n", f"{prefix}B", "link", "set", "sw", "up")
    for letter in "cd":
        ip("-n", f"{prefix}B", "link", "add", f"v{letter}", "type", "veth", "peer", "e",
           "netns", f"{prefix}{letter}")  # fmt: skip
        ip("-n", f"{prefix}B", "link", "set", f"v{letter}", "master", "sw", "up")
    for number, letter in enumerate("abcd"):
        place = f"{prefix}{letter}"
        ip("-n", place, "addr", "add", f"10.9.{number // 2}.{number % 2 + 1}/24", "dev", "e")
        ip("-n", place, "link", "set", "e", "up")
    for name, pair, net in (("bare pair", "ab", 0), ("bare bridge", "cd", 1)):
        server, sender = (["nsenter", f"--net=/run/netns/{prefix}{x}"] for x in pair)
        iperf.add(name, server, sender, f"10.9.{net}.1")


def ours(made: NetWorld, iperf: Iperf) -> None:
    """Two containers, with a bridged and a routed interface each, and the world outside."""
    made.at(made.node, "ip", "link", "add", "br0", "type", "bridge")
    made.at(made.node, "ip", "link", "set", "br0", "up")
    for number, name in enumerate(("x", "y"), 1):
        made.create(name, "--ipadd", f"10.77.0.{number}")
        made.prlctl("set", name, "--device-add", "net", "--network", "br0",
                    "--ipadd", f"10.88.0.{number}/24")  # fmt: skip
    inside = {}
    for name in ("x", "y"):
        pid = init_of(made, name)
        inside[name] = ["nsenter", f"--net=/proc/{pid}/ns/net"]
    outside = ["nsenter", f"--net=/run/netns/{made.outside}"]
    iperf.add("container to container, bridged", inside["x"], inside["y"], "10.88.0.1")
    iperf.add("container to container, routed", inside["x"], inside["y"], "10.77.0.1")
    iperf.add("container to another namespace", outside, inside["x"], "10.99.0.2")
    iperf.add("another namespace to container", inside["x"], outside, "10.77.0.1")


def init_of(made: NetWorld, name: str) -> int:
    """The process id of a container's init on the node."""
    uuid = json.loads(made.prlctl("list", "-a", "-j", name))[0]["uuid"].strip("{}")
    return int(json.loads((made.root / f"run/pyvz/state/{uuid}.json").read_text())["pid"])


def throughput(work: Path, runs: int, peers: Callable[[ExitStack, Iperf], None]) -> list[str]:
    """TCP beside bare links."""
    iperf = Iperf()
    with world(work) as made, ExitStack() as undo:
        bare(undo, made.root.name, iperf)
        ours(made, iperf)
        peers(undo, iperf)
        seen = iperf.run(runs)
    median = {name: statistics.median(values) for name, values in seen.items()}
    pair, bridge = median["bare pair"], median["bare bridge"]
    return [
        f"{name:34s} {value:7.1f} Gbit/s"
        f"   ({value / pair:.2f} of a pair, {value / bridge:.2f} of a bridge)"
        for name, value in median.items()
    ]


def incus(undo: ExitStack, iperf: Iperf) -> None:
    """Two containers of Incus on a bridge that Incus has made (in the machine's own network)."""
    work = Path(tempfile.mkdtemp(prefix="pvi.", dir="/var/tmp"))
    work.chmod(0o711)
    undo.callback(shutil.rmtree, work, ignore_errors=True)
    tree = work / "tree"
    tree.mkdir()
    make_busybox(tree)
    pack = ["tar", "-C", tree, "--numeric-owner", "--owner=0", "--group=0", "-cf"]
    for name, part in (("image.tar", "."), ("tiny.tar", "./etc")):
        subprocess.run([*pack, work / name, part], check=True)
    peer = Incus(Place(work, work / "image.tar", work / "tiny.tar"))
    undo.callback(peer.clean)
    peer.setup()
    bridge = "pvbench0"
    peer.run(["incus", "network", "create", bridge, "ipv4.address=10.9.9.254/24",
              "ipv4.nat=false", "ipv6.address=none"])  # fmt: skip
    undo.callback(peer.run, ["incus", "network", "delete", bridge], check=False)
    ends = []
    for number, name in enumerate(("i1", "i2"), 1):
        peer.run(["incus", "init", "-q", "img", name, "-s", "p", "-n", bridge])
        undo.callback(peer.run, ["incus", "delete", "-f", name], check=False)
        peer.run(["incus", "start", name])
        ends.append(["nsenter", f"--net=/proc/{peer.init(name)}/ns/net"])
        for words in (["addr", "add", f"10.9.9.{number}/24", "dev", "eth0"],
                      ["link", "set", "eth0", "up"]):  # fmt: skip
            subprocess.run([*ends[-1], "ip", *words], check=True)
    iperf.add("Incus, container to container", ends[0], ends[1], "10.9.9.1")


def no_peers(_undo: ExitStack, _iperf: Iperf) -> None:
    """Only the kernel is beside us."""


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        prog="script/bench network",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=7, metavar="N")
    parser.add_argument("--what", default="start,addresses,throughput", metavar="A,B")
    parser.add_argument("--incus", action="store_true", help="Incus' bridge as well")
    options = parser.parse_args()
    peers = no_peers
    if options.incus:
        peers = incus
    with tempfile.TemporaryDirectory(prefix="pvn.", dir="/var/tmp") as folder:
        work = Path(folder)
        work.chmod(0o711)
        parts = {
            "start": lambda: start(work, options.runs),
            "addresses": lambda: addresses(work, options.runs),
            "throughput": lambda: throughput(work, max(3, options.runs // 2), peers),
        }
        for word in options.what.split(","):
            print("\n".join(parts[word]()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
