"""script/bench ksm: the memory that merging of equal pages saves with containers of one template.

    script/bench ksm [--containers N] [--seconds N] [--image TAR]

Starts N containers of Debian 12 with systemd, with --features ksm:on and then the same without,
lets the node's own controller work, and prints after each third of the time: the private memory
of all their processes (anonymous pages), what the kernel says is saved of it, and the CPU time
of the kernel's thread that looked for it.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench.__main__ import find_image, make_place
from bench.measure import booted, say
from bench.ours import Pyvz
from bench.peer import Missing
from pyvz.linux.ksm import Counters, Ksm
from pyvz.units import MIB

PARTS = 3  # looks at each way


class Seen(NamedTuple):
    """What all containers hold in private memory, what is saved of it (bytes), CPU seconds."""

    held: int
    saved: int
    cpu: float


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="script/bench ksm",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--containers", type=int, default=20, metavar="N")
    parser.add_argument("--seconds", type=int, default=90, metavar="N", help="for each way")
    parser.add_argument("--image", metavar="TAR", help="a root folder of Debian with systemd")
    return parser.parse_args()


def private(peer: Pyvz) -> int:
    """The anonymous memory of all processes of the node's containers, each page of each counted."""
    row = peer.run(["prlctl", "list", "-a", "-H", "-o", "uuid"])
    uuids = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", row)
    total = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it may end while we look
            if entry.name.isdigit() and inside((entry / "cgroup").read_text(), uuids):
                status = (entry / "status").read_text()
                found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
                total += int(found.group(1)) * 1024 if found else 0
    return total


def inside(groups: str, uuids: list[str]) -> bool:
    """Whether a process with these control groups is in one of the containers."""
    return any(uuid in groups for uuid in uuids)


def since(before: Counters, now: Counters) -> Counters:
    """What came since."""
    return Counters(now.saved - before.saved, now.scans - before.scans, now.cpu - before.cpu)


def run(peer: Pyvz, names: list[str], features: str, seconds: float) -> list[Seen]:
    """Start all, look, stop all."""
    kernel = Ksm()
    before = kernel.counters()
    seen = []
    try:
        for name in names:
            peer.run(["prlctl", "set", name, "--features", features])
            peer.run(peer.start(name))
            booted(peer, name, 300.0)  # one at a time: no crowd of booting systems
        for _ in range(PARTS):
            time.sleep(seconds / PARTS)
            more = since(before, kernel.counters())
            seen.append(Seen(private(peer), more.saved, more.cpu))
            say(f"{features}: {line(seen[-1])}")
    finally:
        for name in names:
            peer.run(peer.kill(name), check=False)
    return seen


def line(seen: Seen) -> str:
    """One look as text."""
    share = seen.saved / seen.held if seen.held else 0.0
    return (
        f"{seen.held / MIB:8.0f} MiB private {seen.saved / MIB:8.0f} MiB saved ({share:.2f})"
        f" {seen.cpu:6.1f} s of CPU"
    )


def main() -> int:
    """Set up, look at both ways, print, clean."""
    options = arguments()
    if not Ksm().available():
        say("this kernel has no KSM")
        return 1
    image = Path(options.image) if options.image else find_image()
    work = Path(tempfile.mkdtemp(prefix="pvk.", dir="/var/tmp"))
    peer = Pyvz(make_place(work, image))
    names = [f"k{number}" for number in range(options.containers)]
    try:
        peer.setup()
        for name in names:
            peer.run(peer.create(name))
        rows = {
            features: run(peer, names, features, options.seconds)
            for features in ("ksm:on", "ksm:off")
        }
    except Missing as error:
        say(str(error))
        return 1
    finally:
        peer.clean()
        shutil.rmtree(work, ignore_errors=True)
    print(f"{len(names)} containers, after each {options.seconds / PARTS:.0f} s")
    for features, seen in rows.items():
        for each in seen:
            print(f"{features:<8} {line(each)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
