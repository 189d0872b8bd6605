"""script/bench overcommit: what the memory policies buy on a node that is overcommitted 2:1.

    script/bench overcommit [--seconds N] [--warm N] [--rounds N] [--modes A,B]

"The node" is a control group with a limit of 1 GiB, the parent of four containers whose limits make
2 GiB: one is hot (it serves pages of 512 MiB of its files at random, with a checksum), three are
cold (each goes through data that it never needs again, reading each part twice, as rsync -c or a
backup with verification do, 150 MB/s).  The work done by the hot one in a minute is counted under
each policy of pyvz, and under Incus with the same limits.  The data of the cold ones are holes of
a sparse file, so they cost memory but no disk.

The loads are processes of the bench put into the containers' memory groups, the same for everybody.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench.incus import Incus
from bench.measure import say
from bench.ours import Pyvz
from bench.peer import Missing, Peer, Place, until

MIB = 1 << 20
NODE = 1024 * MIB
HOT = 512 * MIB
LIMITS = {"hot": 704 * MIB, "cold1": 448 * MIB, "cold2": 448 * MIB, "cold3": 448 * MIB}
RATE = 150 * MIB
ALONE = 15.0  # seconds
MEMORY = Path("/sys/fs/cgroup/memory")
UNIFIED = Path("/sys/fs/cgroup")
POLICIES = ("noop", "density", "pressure")
MODES = ("incus", *POLICIES)

HOT_LOAD = """\
import hashlib, os, random, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
pages = os.fstat(fd).st_size // 4096
for _ in range(2):
    for at in range(0, pages * 4096, 1 << 20):
        os.pread(fd, 1 << 20, at)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
buffer = [bytearray(4096)]
pick, read, count, told = random.Random(7).randrange, os.preadv, 0, time.monotonic()
while True:
    for _ in range(200):
        read(fd, buffer, pick(pages) * 4096)
        hashlib.sha256(buffer[0]).digest()
    count += 200
    if time.monotonic() - told > 0.1:
        told = time.monotonic()
        os.pwrite(1, b"%20d" % count, 0)
"""
COLD_LOAD = """\
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
size, rate = os.fstat(fd).st_size, int(sys.argv[2])
buffer, done, began = [bytearray(1 << 20)], 0, time.monotonic()
while True:
    for at in (*range(0, 32 << 20, 1 << 20),) * 2:
        os.preadv(fd, buffer, (done + at) % size)
    done += 32 << 20
    os.pwrite(1, b"%20d" % done, 0)
    ahead = done / rate - (time.monotonic() - began)
    if ahead > 0:
        time.sleep(ahead)
"""
ENTER = ("/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"')
INIT = """\
#!/bin/sh
trap 'exit 0' TERM PWR
while :; do sleep 1; done
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="script/bench overcommit",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="counted in each mode")
    parser.add_argument("--warm", type=int, default=20, metavar="N", help="before that")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="over all modes")
    parser.add_argument("--modes", default=",".join(MODES), metavar="A,B")
    return parser.parse_args()


class Groups:
    """The containers of one peer as memory groups below a parent that is the node."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def start(self) -> None:
        """Make and start the four; then make the node small."""
        for name, limit in LIMITS.items():
            self.peer.run(self.peer.create(name))
            self.confine(name, limit)
            self.peer.run(self.peer.start(name))
        write(self.of("hot").parent, ("memory.limit_in_bytes", "memory.max"), NODE)

    def confine(self, name: str, limit: int) -> None:
        """Give a stopped container its limit."""
        raise NotImplementedError

    def of(self, name: str) -> Path:
        """The container's memory group."""
        pid = self.peer.init(name)
        if not pid:
            raise Missing(f"{name} does not run")
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "memory":
                return MEMORY / path.lstrip("/")
        return UNIFIED / line.rpartition(":")[2].lstrip("/")


class OurGroups(Groups):
    """pyvz."""

    def confine(self, name: str, limit: int) -> None:
        self.peer.run(["prlctl", "set", name, "--memsize", f"{limit // MIB}M"])

    def of(self, name: str) -> Path:
        row = self.peer.run(["prlctl", "list", "-a", "-H", "-o", "uuid,name"])
        found = re.search(rf"^\{{?([0-9a-f-]+)\}}?\s+{name}\s*$", row, re.MULTILINE)
        if found is None:
            raise Missing(f"{name} is not there")
        for place in (*MEMORY.glob(f"*/{found.group(1)}"), *UNIFIED.glob(f"*/{found.group(1)}")):
            return place
        raise Missing(f"{name} does not run")


class IncusGroups(Groups):
    """Incus: its containers below a group of the bench."""

    def confine(self, name: str, limit: int) -> None:
        where = f"lxc.cgroup.dir=pyvz-bench-incus.slice/{name}"
        self.peer.run(["incus", "config", "set", name, f"raw.lxc={where}"])
        self.peer.run(["incus", "config", "set", name, f"limits.memory={limit}"])

    def of(self, name: str) -> Path:
        place = super().of(name)
        while place.parent.name != "pyvz-bench-incus.slice":
            if place == place.parent:
                raise Missing("Incus did not put it below the bench's group")
            place = place.parent
        return place


def write(place: Path, files: tuple[str, ...], value: int) -> None:
    """Write a number into the file of these that there is."""
    for file in files:
        if (place / file).exists():
            (place / file).write_text(str(value))


def used(place: Path) -> int:
    """The memory charged to a group."""
    files = (place / "memory.usage_in_bytes", place / "memory.current")
    return int(next(file for file in files if file.exists()).read_text())


class Load:
    """A process in a memory group that counts what it has done in a file."""

    def __init__(self, group: Path, counter: Path, program: str, *words: str) -> None:
        self.counter = counter
        with counter.open("w+b") as out:
            self.process = subprocess.Popen(
                [*ENTER, str(group), sys.executable, "-IS", "-c", program, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
            )

    def count(self) -> int:
        """What it has done so far."""
        return int(self.counter.read_text() or 0)

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


def forget(*files: Path) -> None:
    """Take files out of the page cache."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


class Seen(NamedTuple):
    """Per minute: pages that the hot one served, MiB that the cold ones read; MiB it holds."""

    hot: float
    cold: float
    held: float


def run(groups: Groups, work: Path, options: argparse.Namespace) -> Seen:
    """Let the loads run, and count."""
    names = [name for name in LIMITS if name != "hot"]
    files = {name: work / f"{name}.data" for name in LIMITS}
    forget(*files.values())
    # The hot one has been at work for a while when the others come.
    hot = Load(groups.of("hot"), work / "hot.count", HOT_LOAD, str(files["hot"]))
    loads = [hot]
    try:
        until(hot.count, "the first pages of the hot one", 120.0)
        time.sleep(ALONE)
        for name in names:
            words = (str(files[name]), str(RATE))
            loads.append(Load(groups.of(name), work / f"{name}.count", COLD_LOAD, *words))
        time.sleep(options.warm)
        before = [load.count() for load in loads]
        time.sleep(options.seconds)
        done = [load.count() - at for load, at in zip(loads, before, strict=True)]
        held = used(groups.of("hot"))
    finally:
        for load in loads:
            load.end()
    minute = 60 / options.seconds
    return Seen(done[0] * minute, sum(done[1:]) * minute / MIB, held / MIB)


def make_place(work: Path) -> Place:
    """A tiny image, and the data."""
    work.chmod(0o711)
    tree = work / "tree"
    for name in ("bin", "sbin", "etc", "dev", "proc", "sys", "run", "tmp", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    for name in ("sh", "sleep", "true"):
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "sbin/init").write_text(INIT)
    (tree / "sbin/init").chmod(0o755)
    (tree / "etc/hostname").write_text("bench\n")
    image, tiny = work / "image.tar", work / "tiny.tar"
    subprocess.run(["tar", "-C", tree, "--numeric-owner", "-cf", tiny, "etc"], check=True)
    subprocess.run(["tar", "-C", tree, "--numeric-owner", "-cf", image, "."], check=True)
    with (work / "hot.data").open("wb") as file:
        for _ in range(HOT // MIB):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    for name in LIMITS:
        if name != "hot":
            with (work / f"{name}.data").open("wb") as file:
                file.truncate(64 << 30)
    return Place(work, image, tiny)


def main() -> int:
    """Set up, run every mode, print, clean."""
    options = arguments()
    modes = options.modes.split(",")
    results: dict[str, list[Seen]] = {mode: [] for mode in modes}
    work = Path(tempfile.mkdtemp(prefix="pvo.", dir="/var/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        place = make_place(work)
        for number in range(options.rounds):
            for kind, adapter, own in (
                (Incus, IncusGroups, ("incus",)),
                (Pyvz, OurGroups, POLICIES),
            ):
                wanted = [mode for mode in own if mode in modes]
                if wanted:
                    measure(kind(place), adapter, wanted, results, options)
            say(f"round {number + 1} of {options.rounds} is over")
    print(table(results))
    return 0


def measure(
    peer: Peer,
    adapter: type[Groups],
    modes: list[str],
    results: dict[str, list[Seen]],
    options: argparse.Namespace,
) -> None:
    """Run the modes of one peer."""
    try:
        peer.setup()
        groups = adapter(peer)
        groups.start()
        for mode in modes:
            say(mode)
            if mode in POLICIES:
                peer.run(["vcmmdctl", "set-policy", mode])
            results[mode].append(run(groups, peer.place.work, options))
    except Missing as error:
        say(f"{peer.name} is left out: {error}")
    finally:
        peer.clean()
        for place in (*MEMORY.parent.glob("*/pyvz-bench-incus.slice"),):
            for below in sorted(place.rglob("*/"), reverse=True):
                with contextlib.suppress(OSError):
                    below.rmdir()
            with contextlib.suppress(OSError):
                place.rmdir()


def table(results: dict[str, list[Seen]]) -> str:
    """Work per minute, and the ratio to Incus (or to the first mode that ran)."""
    means = {
        mode: Seen(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))
        for mode, rows in results.items()
        if rows
    }
    base = next(iter(means), "")
    head = ("hot: pages/min", f"against {base}", "MiB held", "cold: MiB/min")
    lines = [f"{'':<10} {head[0]:>15} {head[1]:>16} {head[2]:>9} {head[3]:>14}"]
    lines += [
        f"{mode:<10} {seen.hot:>15.0f} {seen.hot / means[base].hot:>15.2f}x {seen.held:>9.0f} "
        f"{seen.cold:>14.0f}"
        for mode, seen in means.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
