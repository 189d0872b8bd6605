"""Disks of virtual machines: QEMU's block layer with our options beside QEMU at its best.

    .venv/bin/python -m bench.vmdisk [--runs N] [--work DIRECTORY]

`qemu-img bench` does the same requests, 32 at a time, flushed seven times, through the block nodes
that a machine of ours gets (`ours`: what `prlctl create` makes), and through others: a raw image
without the node's page cache (QEMU's best), images of other cluster sizes, and through the page
cache.  All in turns; milliseconds, medians, and in brackets ours divided by the other's.  A guest
is not part of it: under emulation its processor would be what is measured.  Before it is read an
image is dropped from the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.vm import line
from pyvz.units import MIB
from pyvz.vm import commandline, image
from pyvz.vm.spec import DriveSpec

SIZE = 256 * MIB
DEPTH = 32
TIMEOUT = 300.0  # seconds for one measurement
_TOOK = re.compile(r"completed in ([\d.]+) seconds")


class Work(NamedTuple):
    """Requests of SIZE bytes, each STEP after the last (0: the next ones), wrapping around."""

    name: str
    size: int
    count: int
    step: int = 0
    write: bool = False

    def words(self) -> list[str]:
        """Return them as options of qemu-img bench."""
        words = ["-d", str(DEPTH), "-s", str(self.size), "-c", str(self.count)]
        words += ["-S", str(self.step)] if self.step else []
        if not self.write:
            return words
        # No zeros: what is written is not to be left out.
        return [*words, "-w", "--pattern=90", f"--flush-interval={self.count // 8}"]


FAR = MIB + 4096
WORKS = (
    Work("first writes, 64 KiB each", 65536, 2048, write=True),
    Work("writes again, 64 KiB each", 65536, 2048, write=True),
    Work("scattered writes, 4 KiB each", 4096, 4096, FAR, write=True),
    Work("reads, 64 KiB each", 65536, 2048),
    Work("scattered reads, 4 KiB each", 4096, 4096, FAR),
)


class Kind(NamedTuple):
    """An image and how it is opened.  clusters: "" as we make them."""

    format: str
    clusters: str = ""
    direct: bool = True


KINDS: Mapping[str, Kind] = {
    "ours": Kind("qcow2"),
    "raw": Kind("raw"),
    "clusters_256k": Kind("qcow2", "256k"),
    "clusters_2M": Kind("qcow2", "2M"),
    "page_cache": Kind("qcow2", direct=False),
}


def make(path: Path, kind: Kind) -> None:
    """Make an empty image."""
    path.unlink(missing_ok=True)
    if not kind.clusters:
        image.create(path, SIZE, kind.format)
        return
    argv = ["qemu-img", "create", "-q", "-f", kind.format, "-o", f"cluster_size={kind.clusters}"]
    subprocess.run([*argv, path, str(SIZE)], check=True)


def opened(path: Path, kind: Kind) -> str:
    """Return what is to be opened, as a machine would have it."""
    drive = DriveSpec("hdd0", "scsi", 0, kind.format, os.fspath(path), direct=kind.direct)
    file, top = (_bare(node) for node in commandline.blockdevs(drive))
    return "json:" + json.dumps(top | {"file": file})


def _bare(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "node-name"}


def measure(path: Path, kind: Kind, work: Work) -> float:
    """Do the work; milliseconds."""
    if not work.write:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    argv = ["qemu-img", "bench", *work.words(), opened(path, kind)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=TIMEOUT)
    took = _TOOK.search(done.stdout)
    if took is None:
        raise RuntimeError(done.stdout)
    return float(took[1]) * 1000


def rounds(work: Path, runs: int) -> dict[tuple[str, str], list[float]]:
    """Measure every kind in turn; returns times by work and kind."""
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(runs):
        for name, kind in KINDS.items():
            make(work / name, kind)
        for each in WORKS:
            for name, kind in KINDS.items():
                found.setdefault((each.name, name), []).append(measure(work / name, kind, each))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", default="/var/tmp", help="a directory on the disk to measure")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="pb-", dir=given.work) as name:
        found = rounds(Path(name), given.runs)
    for each in WORKS:
        others = {kind: found[each.name, kind] for kind in KINDS if kind != "ours"}
        line(each.name, found[each.name, "ours"], **others)


if __name__ == "__main__":
    main()
