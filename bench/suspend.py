"""script/bench suspend: how fast a container goes to disk, beside the disk itself.

    script/bench suspend [--sizes 16,256,1024] [--runs N]

A container with so many MiB of memory that does not compress is suspended and resumed; beside it,
in turn, as many bytes as its dump has are written to the same file system front to back (1 MiB at a
time, fdatasync at the end), and read again with cold caches.  `ratio` is the speed of ours, over
the whole command, divided by that of the disk; 0.8 is aimed at.  Medians.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.migration import NAME, container, options, world
from twonodes import Side

_MIB = 1 << 20


class Times(NamedTuple):
    """Seconds of one run; size: bytes of the dump."""

    size: int
    suspend: float
    write: float
    resume: float
    read: float


@contextlib.contextmanager
def seconds(found: list[float]) -> Iterator[None]:
    """Append how long the block takes."""
    began = time.monotonic()
    yield
    found.append(time.monotonic() - began)


def cold() -> None:
    """Have the page cache forget what is on disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def written(path: Path, size: int) -> None:
    """Write so many bytes of noise to the disk."""
    noise = os.urandom(_MIB)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for _ in range(0, size, _MIB):
            os.write(fd, noise)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def read(path: Path) -> None:
    """Read a file from front to back."""
    fd = os.open(path, os.O_RDONLY)
    try:
        while os.read(fd, _MIB):
            pass
    finally:
        os.close(fd)


def run(side: Side, home: Path, plain: Path) -> Times:
    """Suspend, write, resume, read, each after a sync."""
    found: list[float] = []
    os.sync()
    with seconds(found):
        side.prlctl("suspend", NAME)
    size = sum(each.stat().st_size for each in (home / "dump").rglob("*") if each.is_file())
    os.sync()
    with seconds(found):
        written(plain, size)
    cold()
    with seconds(found):
        side.prlctl("resume", NAME)
    cold()
    with seconds(found):
        read(plain)
    plain.unlink()
    return Times(size, *found)


def arguments() -> argparse.Namespace:
    return options("suspend", __doc__).parse_args()


def table(mib: int, runs: list[Times]) -> None:
    """Print what was found of one size."""
    size, suspend, write, resume, again = (
        statistics.median(each) for each in zip(*runs, strict=True)
    )
    print(
        f"| {mib} MiB | {size / _MIB:.0f} | {suspend:.2f} | {write:.2f} | {write / suspend:.2f} |"
        f" {resume:.2f} | {again:.2f} | {again / resume:.2f} |",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    args = arguments()
    print("| memory | dump, MiB | suspend, s | disk, s | ratio | resume, s | disk, s | ratio |")
    for mib in map(int, args.sizes.split(",")):
        # On a disk, as /vz is.
        with tempfile.TemporaryDirectory(prefix="sus", dir="/var/tmp") as name:
            work = Path(name)
            work.chmod(0o755)
            with world(work) as made:
                container(made.a, NAME, mib, "simfs")
                uuid = made.a.rows(NAME)[0]["uuid"]
                home = made.a.root / "vz/private" / uuid.strip("{}")
                table(mib, [run(made.a, home, work / "plain") for _ in range(args.runs)])


if __name__ == "__main__":
    main()
