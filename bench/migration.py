"""script/bench migration: how long a container is silent while it moves to another node.

    script/bench migration [--sizes 16,256,1024] [--runs N] [--layout ploop]

Two nodes and a client, each in a network namespace, real ssh between them.  A container with so
many MiB of memory that does not compress moves to and fro; the client sends a byte every
millisecond on one TCP connection and tells the longest silence that it has seen.  Beside it, in
turn, what the plain steps take for another one like it: CRIU's dump, the copy of its images by tar
and ssh, CRIU's restore; `ratio` is the silence divided by their sum.  Medians, in milliseconds.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.peer import unmount_below

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from images import make_busybox
from pyvz.container.checkpoint import DumpHooks, RestoreHooks
from pyvz.container.criurequest import DumpRequest
from pyvz.container.frame import Frame
from pyvz.operations import dump, livedump
from pyvz.operations import node as nodes
from pyvz.store.paths import Paths
from twonodes import Side, TwoNodes

ADDRESS, PORT = "10.99.0.50", 7777
NAME, PLAIN = "ct", "plain"
CLIENT = Path(__file__).with_name("pingpong.py")
# tail holds its last bytes in memory until its input ends, which it never does.
HOG = """#!/bin/sh
[ -s /root/amount ] || exec sleep 86400
[ -p /root/hold ] || mkfifo /root/hold
(head -c $(cat /root/amount) /dev/urandom; touch /root/full; read x < /root/hold) |
    tail -c $(cat /root/amount) | md5sum
"""


@contextmanager
def world(work: Path) -> Iterator[TwoNodes]:
    """Two nodes with a template of busybox; /run of each is in memory, as it is everywhere."""
    tree = work / "tree"
    tree.mkdir()
    make_busybox(tree)
    archive = work / "tree.tar.zst"
    pack = ["tar", "--create", "--zstd", "--numeric-owner", "--owner=0", "--group=0"]
    subprocess.run([*pack, "--file", archive, "--directory", tree, "."], check=True)
    made = TwoNodes(Path(tempfile.mkdtemp(prefix="m", dir=work)))
    try:
        made.wire()
        for side in (made.a, made.b):
            (side.root / "run").mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "none", side.root / "run"], check=True)
            side.ready(archive)
            with (side.root / "etc/vz/vz.conf").open("a") as file:
                file.write('LXCFS="no"\n')  # only the vzd that has started it knows its files
        made.keys()
        made.lan_networks()
        yield made
    finally:
        made.end()
        unmount_below(made.root)


class Watch:
    """The client that plays ping-pong."""

    def __init__(self, made: TwoNodes) -> None:
        where = f"--net=/run/netns/{made.client}"
        argv = ["nsenter", where, sys.executable, CLIENT, ADDRESS, str(PORT)]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def longest(self) -> float:
        """The longest silence since the last question, in milliseconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline()) * 1000

    def end(self) -> None:
        """Hang up."""
        self._process.kill()
        self._process.wait()


def container(side: Side, name: str, mib: int, layout: str) -> None:
    """Make and start one that holds so much memory and echoes."""
    card = ("--device-add", "net", "--network", "lan", "--ipadd", f"{ADDRESS}/24")
    options = card if name == NAME else ()
    room = ("--memsize", f"{2 * mib + 256}M")
    uuid = side.create(name, *options, *room, start=False, layout=layout)
    side.prlctl("mount", name)
    root = side.root / "vz/root" / uuid
    (root / "root/hog").write_text(HOG)
    (root / "root/amount").write_text(str(mib << 20))
    with (root / "etc/inittab").open("a") as file:
        file.write("::once:/bin/sh /root/hog\n")
        file.write(f"::respawn:/bin/busybox nc -ll -p {PORT} -e /bin/cat\n")
    side.prlctl("umount", name)
    side.prlctl("start", name)
    deadline = time.monotonic() + 300
    while "full" not in side.inside(name, "ls /root", code=None):
        if time.monotonic() > deadline:
            raise SystemExit("bench: the container has not filled its memory")
        time.sleep(0.2)
    time.sleep(1)


class Silent:
    """Publishes nothing."""

    def publish(self, event: object) -> None:
        """Nobody listens."""


class Plain:
    """A container of the same size that CRIU dumps and restores, with nothing of ours between."""

    def __init__(self, made: TwoNodes) -> None:
        self._made = made
        self._node = nodes.open_node(Paths(made.a.root), Silent())
        self._env = self._node.registry.resolve(PLAIN)
        self._there = made.b.root / "run/copied"
        where = f"--net=/run/netns/{made.a.namespace}"
        control = made.root / "control"
        self._ssh = ["nsenter", where, "ssh", "-F", made.ssh_config, "-S", control]
        # Ours has its connection before anything stands still: so has this one.
        subprocess.run([*self._ssh, "-M", "-f", "-N", "b"], check=True)

    def end(self) -> None:
        """Hang up."""
        subprocess.run([*self._ssh, "-O", "exit", "b"], check=True, stderr=subprocess.DEVNULL)

    def steps(self) -> tuple[float, float, float]:
        """Milliseconds of dump, copy and restore; it runs again afterwards."""
        node, env = self._node, self._env
        images = node.paths.run / "bench-images"
        livedump.make(images)
        spec = dump.specification(node, env, node.registry.config(env))
        with node.lease(env, "bench"):
            marks = {}
            engine = node.checkpoint
            with engine.worker(env.uuid, images) as worker:
                hooks = DumpHooks(
                    network_lock=lambda: marks.setdefault("frozen", time.monotonic()),
                    frozen=lambda: bool(marks.setdefault("dumped", time.monotonic())),
                )
                engine.dump(worker, DumpRequest(engine.frame(spec)), hooks)
            began = time.monotonic()
            self._copy(images)
            copied = time.monotonic() - began
            node.runtime.kill(env.uuid, timeout=30)
            node.runtime.clean(env.uuid)
            frame = Frame.load(images)
            with engine.worker(env.uuid, images, root=engine.root(spec, frame)) as worker:
                began = time.monotonic()
                engine.restore(worker, spec, frame, RestoreHooks())
                restored = time.monotonic() - began
        livedump.remove(images)
        frozen = marks["dumped"] - marks["frozen"]
        return frozen * 1000, copied * 1000, restored * 1000

    def _copy(self, images: Path) -> None:
        shutil.rmtree(self._there, ignore_errors=True)
        self._there.mkdir()
        with subprocess.Popen(["tar", "-c", "-C", images, "."], stdout=subprocess.PIPE) as tar:
            unpack = f"tar -x -C {self._there}"
            subprocess.run([*self._ssh, "b", unpack], stdin=tar.stdout, check=True)
        shutil.rmtree(self._there)


def move(here: Side, target: str, *options: str) -> dict[str, object]:
    """Move it; the result as vzmigrate tells it."""
    out = here.vzmigrate("--online", "--json", *options, target, NAME)
    found: dict[str, object] = json.loads(out.splitlines()[-1])["result"]
    return found


class Row(NamedTuple):
    """What was measured of one size: milliseconds of each run."""

    silences: dict[str, list[float]]
    steps: list[tuple[float, float, float]]


WAYS: dict[str, tuple[str, ...]] = {"stop-and-copy": (), "post-copy": ("--post-copy",)}


def measured(made: TwoNodes, runs: int) -> Row:
    """Let it move to and fro, and the other one through CRIU, in turn."""
    watch, plain = Watch(made), Plain(made)
    row = Row({way: [] for way in WAYS}, [])
    sides = [(made.a, "b"), (made.b, "a")]
    moves = 0
    try:
        time.sleep(0.5)
        for _ in range(runs):
            for way, options in WAYS.items():
                here, target = sides[moves % 2]
                moves += 1
                watch.longest()
                result = move(here, target, *options)
                time.sleep(0.3)
                row.silences[way].append(watch.longest())
                sys.stderr.write(f"{way} {row.silences[way][-1]:.0f} ms  {json.dumps(result)}\n")
            row.steps.append(plain.steps())
            sys.stderr.write(f"plain {row.steps[-1]}\n")
    finally:
        watch.end()
        plain.end()
    return row


def table(size: int, row: Row) -> None:
    """Print what was found of one size."""
    dumped, copied, restored = (statistics.median(each) for each in zip(*row.steps, strict=True))
    total = dumped + copied + restored
    print(f"| {size} MiB | {dumped:.0f} + {copied:.0f} + {restored:.0f} = {total:.0f} |", end="")
    for silences in row.silences.values():
        found = statistics.median(silences)
        print(f" {found:.0f} ({max(silences):.0f}) | {found / total:.2f} |", end="")
    print(flush=True)


def options(name: str, text: str | None) -> argparse.ArgumentParser:
    """Return what a bench of several sizes of memory takes."""
    parser = argparse.ArgumentParser(
        prog=f"script/bench {name}",
        description=text,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--sizes", default="16,256,1024", metavar="MIB,...")
    parser.add_argument("--runs", type=int, default=4, metavar="N")
    return parser


def arguments() -> argparse.Namespace:
    parser = options("migration", __doc__)
    parser.add_argument("--layout", default="ploop")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    for size in map(int, args.sizes.split(",")):
        with tempfile.TemporaryDirectory(prefix="mig", dir="/tmp") as name:
            work = Path(name)
            work.chmod(0o755)
            with world(work) as made:
                for each in (NAME, PLAIN):
                    container(made.a, each, size, args.layout)
                table(size, measured(made, args.runs))


if __name__ == "__main__":
    main()
