"""script/bench storage: disks of containers beside the bare kernel operations, in one run.

Every row is measured in turn on all sides, so that a slow moment hits all of them.  What is printed
is the median of ours divided by the median of the other: times below 1 are faster, rates above 1
are faster; in brackets the middle half of the ratios of single rounds.  Needs root, fio, xfsprogs,
btrfs-progs, 12 GiB below --work.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

from bench.peer import unmount_below
from pyvz.backup import image
from pyvz.backup.repository import Repository
from pyvz.container.client import KeeperClient
from pyvz.errors import VZError
from pyvz.linux import extents, filesystem, loopdevice, mount
from pyvz.model.task import NoProgress
from pyvz.storage import newfilesystem, ploopdisk
from pyvz.storage.ploop import Driver

GIB = 1 << 30
SIZE = 4 * GIB
QUIET = NoProgress()
JOBS = {
    "write 1M": ["--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1"],
    "read 1M": ["--rw=read", "--bs=1M", "--iodepth=4"],
    "write 4k": ["--rw=randwrite", "--bs=4k", "--iodepth=16"],
    "read 4k": ["--rw=randread", "--bs=4k", "--iodepth=16"],
    "4k + fsync": ["--rw=write", "--bs=4k", "--ioengine=psync", "--fsync=1"],
}
Samples = dict[str, list[float]]


def run(*argv: str | Path) -> str:
    """Run a program; what it says on standard error is shown when it fails."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, argv))}: {done.stderr}")
    return done.stdout


def say(text: str) -> None:
    """Tell where we are."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def pool(work: Path, kind: str) -> Iterator[Path]:
    """A file system in a sparse file, as the node makes its own pool, and Incus its btrfs."""
    place, file = work / kind, work / f"{kind}.img"
    place.mkdir()
    run("truncate", "-s", "24G", file)
    run(f"mkfs.{kind}", "-q", file)
    run("mount", "-o", "loop", file, place)
    try:
        yield place
    finally:
        settle(place)
        for entry in reversed(mount.mounts(place.resolve())):
            run("umount", entry.target)
        file.unlink()


def disk(driver: Driver, home: Path, source: Path | None = None) -> Path:
    """A new disk of ours."""
    home.mkdir()
    driver.create(home, size=SIZE, source=source, progress=QUIET)
    return home


@contextlib.contextmanager
def bare(image_file: Path, target: Path) -> Iterator[Path]:
    """A raw image on a loop device with direct I/O, mounted: what there is without us."""
    target.mkdir(exist_ok=True)
    size = image_file.stat().st_size
    with loopdevice.attached(image_file, 0, size) as loop:
        kind = filesystem.kind_at(image_file) or ""
        held = filesystem.mount_detached(loop.device, kind)
        filesystem.place(held, target)
        os.close(held)
    try:
        yield target
    finally:
        run("umount", target)
        ploopdisk.wait_detached(image_file)


def raw_image(path: Path) -> Path:
    """A raw image with the file system that our disks have."""
    run("truncate", "-s", str(SIZE), path)
    with loopdevice.attached(path, 0, SIZE) as loop:
        filesystem.make(loop.device, newfilesystem.default())
    return path


def fio(directory: Path, options: list[str], seconds: int) -> float:
    """Bytes per second of one job."""
    argv = ["fio", "--name=j", f"--directory={directory}", "--size=512M", "--direct=1",
            f"--runtime={seconds}", "--output-format=json", "--ioengine=io_uring"]  # fmt: skip
    text = run(*argv, *options)
    told = json.loads(text[text.index("{") :])["jobs"][0]
    return float(told["read"]["bw_bytes"] + told["write"]["bw_bytes"])


def io(work: Path, xfs: Path, runs: int, seconds: int) -> Samples:
    """fio in a disk of ours, on a raw image beside it, and in a subvolume of btrfs."""
    found: Samples = {}
    driver = Driver()
    ours = disk(driver, xfs / "io")
    target = work / "ours"
    with contextlib.ExitStack() as stack:
        driver.mount(ours, target)
        stack.callback(driver.umount, ours, target)
        raw = stack.enter_context(bare(raw_image(xfs / "raw.img"), work / "raw"))
        btrfs = stack.enter_context(pool(work, "btrfs"))
        run("btrfs", "subvolume", "create", btrfs / "ct")
        sides = {"ours": target, "raw loop": raw, "btrfs": btrfs / "ct"}
        for name, options in JOBS.items():
            say(f"fio {name}")
            for number in range(runs):
                order = list(sides.items())
                for side, place in order[number % 3 :] + order[: number % 3]:
                    found.setdefault(f"{name}|{side}", []).append(fio(place, options, seconds))
    return found


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1e3


def settle(place: Path) -> None:
    """Wait until no device shows a file below `place`: they go a moment after their mounts."""
    deadline = time.monotonic() + 30
    while loopdevice.below(place.resolve()) and time.monotonic() < deadline:
        time.sleep(0.01)


def provisioning(work: Path, xfs: Path, runs: int) -> Samples:
    """Create from a template and clone, each with its mount, against cp --reflink and a mount."""
    found: Samples = {}
    driver = Driver()
    tar = xfs / "template.tar"
    run("tar", "-C", "/usr/share", "-cf", tar, "doc", "man")
    first = disk(driver, xfs / "first", tar)  # makes the golden image
    target = work / "made"
    with bare(raw_image(xfs / "plain.img"), work / "fill") as filled:
        run("tar", "-C", filled, "-xf", tar)

    def ours(make: Callable[[Path], object]) -> None:
        home = xfs / f"h{uuid4()}"
        home.mkdir()
        make(home)
        driver.mount(home, target)

    def kernel() -> None:
        copy = xfs / f"c{uuid4()}.img"
        run("cp", "--reflink=always", xfs / "plain.img", copy)
        run("mount", "-o", "loop,nouuid" if newfilesystem.default() == "xfs" else "loop", copy,
            target)  # fmt: skip

    sides: dict[str, Callable[[], None]] = {
        "create|ours": lambda: ours(
            lambda home: driver.create(home, size=SIZE, source=tar, progress=QUIET)
        ),
        "clone|ours": lambda: ours(lambda home: driver.clone(first, home, QUIET)),
        "cp|kernel": kernel,
    }
    target.mkdir()
    for _ in range(runs):
        for name, make in sides.items():
            found.setdefault(name, []).append(timed(make))
            run("umount", target)
            settle(xfs)
    return found


def snapshots(work: Path, xfs: Path, runs: int) -> Samples:
    """A snapshot of a mounted disk without others and of one with 100, in turn; the kernel's part.

    That is a file system on a loop device, frozen, and `cp --reflink` of its file.
    """
    driver = Driver()
    with contextlib.ExitStack() as stack:
        sides: dict[str, tuple[Path, Callable[[str], object], Callable[[str], object]]] = {}
        for name, present in (("first", 0), ("with 100", 100)):
            home, ours = disk(driver, xfs / f"snap-{present}"), work / f"snap-{present}"
            driver.mount(home, ours)
            stack.callback(driver.umount, home, ours)
            sides[f"snapshot|{name}"] = (
                ours,
                functools.partial(driver.snapshot, home),
                functools.partial(driver.delete_snapshot, home),
            )
            image_file, raw = xfs / f"bare-{present}.img", work / f"bare-{present}"
            stack.enter_context(bare(raw_image(image_file), raw))
            sides[f"reflink|{name}"] = (
                raw,
                functools.partial(still_copy, raw, image_file),
                lambda guid, image_file=image_file: copied(image_file, guid).unlink(),
            )
        for place, *_ in sides.values():
            (place / "data").write_bytes(os.urandom(64 << 20))
        return _in_turn(sides, runs)


def _in_turn(
    sides: dict[str, tuple[Path, Callable[[str], object], Callable[[str], object]]], runs: int
) -> Samples:
    """Take a snapshot more on each side, again and again, after a write of 1 MiB."""
    found: Samples = {}
    for number in range(100 + 4 * runs):
        for name, (place, take, forget) in sides.items():
            if number < 100 and name.endswith("first"):
                continue
            with (place / "data").open("r+b") as file:
                file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
            guid = f"{{{uuid4()}}}"
            took = timed(lambda take=take, guid=guid: take(guid))
            if number >= 100:
                found.setdefault(name, []).append(took)
                forget(guid)
    return found


def copied(image_file: Path, guid: str) -> Path:
    """Where a copy of a raw image lies."""
    return image_file.with_name(f"{image_file.name}.{guid}")


def still_copy(place: Path, image_file: Path, guid: str) -> None:
    """Copy the image behind a mounted file system at one moment, and write the copy out."""
    fd = os.open(place, os.O_RDONLY)
    try:
        with filesystem.frozen(fd, 30):
            run("cp", "--reflink=always", image_file, copied(image_file, guid))
            run("sync", copied(image_file, guid))
    finally:
        os.close(fd)


def backups(work: Path, xfs: Path, runs: int) -> Samples:
    """A full backup of 1 GiB of data, incrementals of 1 % and of 10 %, and of nothing."""
    found: Samples = {}
    driver = Driver()
    home = disk(driver, xfs / "backup")
    target = work / "backup"
    repository = Repository.make(xfs / "repository")
    driver.mount(home, target)

    def take(old: tuple[Path, tuple[str, ...]] | None) -> tuple[Path, tuple[str, ...]]:
        copy = xfs / f"copy-{uuid4()}"
        offset, size = driver.copy_image(home, copy)
        with repository.shared(), repository.writer() as writer, copy.open("rb") as now:
            source = image.Source(now.fileno(), offset, size)
            if old is None:
                pages = image.back_up(source, writer, QUIET, old=None, changed=None)
            else:
                with old[0].open("rb") as before:
                    changed = extents.differences(before.fileno(), now.fileno())
                index = image.Index(size, old[1], repository.chunks.get)
                pages = image.back_up(source, writer, QUIET, old=index, changed=changed)
            writer.flush()
        return copy, pages

    try:
        with (target / "data").open("wb") as file:
            for _ in range(1024):
                file.write(os.urandom(1 << 20))
        last = None
        begun = time.perf_counter()
        last = take(None)
        found["backup|full"] = [(time.perf_counter() - begun) * 1e3]
        for number in range(runs):
            for name, megabytes in (("0 %", 0), ("1 %", 10), ("10 %", 102)):
                with (target / "data").open("r+b") as file:
                    file.seek((number * 128 % 900) << 20)
                    for _ in range(megabytes):
                        file.write(os.urandom(1 << 20))
                begun = time.perf_counter()
                last = take(last)
                found.setdefault(f"backup|{name}", []).append((time.perf_counter() - begun) * 1e3)
    finally:
        driver.umount(home, target)
    return found


def volumes(work: Path, runs: int) -> Samples:
    """1000 homes in a pool, listed by the command line and by the operation alone."""
    root = work / "node"
    private = root / "vz/private"
    private.mkdir(parents=True)
    environment = {**os.environ, "PYVZ_ROOT": str(root)}
    for _ in range(1000):
        home = private / str(uuid4())
        home.mkdir()
        (home / ".ve.layout").symlink_to("5")
    found: Samples = {}
    argv = ["prlsrvctl", "pool", "info", "default"]
    try:
        subprocess.run(argv, check=True, env=environment, stdout=subprocess.DEVNULL)
        for _ in range(runs):
            bare = ["/usr/bin/python3", "-IS", "-c", "pass"]
            for name, words in (
                ("1000", argv),
                ("none", ["prlctl", "--version"]),
                ("python", bare),
            ):
                took = timed(
                    lambda words=words: subprocess.run(
                        words, check=True, env=environment, stdout=subprocess.DEVNULL
                    )
                )
                found.setdefault(f"list|{name}", []).append(took)
    finally:
        end(root, environment)
    return found


def end(root: Path, environment: dict[str, str]) -> None:
    """End what the command line has started for the node, and take its mounts away."""
    stop = ["prlsrvctl", "shutdown", "--force"]
    subprocess.run(stop, check=False, env=environment, stdout=subprocess.DEVNULL)
    with contextlib.suppress(OSError, VZError):
        keeper = KeeperClient(root / "run/pyvz/keeper.sock")
        keeper.quit(force=True)
        keeper.close()
    unmount_below(root)


RATIOS = (
    *((f"{job}: ours / raw loop", f"{job}|ours", f"{job}|raw loop") for job in JOBS),
    *((f"{job}: ours / btrfs", f"{job}|ours", f"{job}|btrfs") for job in JOBS),
    ("create + mount / cp --reflink + mount", "create|ours", "cp|kernel"),
    ("clone + mount / cp --reflink + mount", "clone|ours", "cp|kernel"),
    ("snapshot with 100 there / the first", "snapshot|with 100", "snapshot|first"),
    ("bare cp --reflink of one with 100 / the first", "reflink|with 100", "reflink|first"),
    ("snapshot / freeze and bare cp --reflink", "snapshot|first", "reflink|first"),
    ("backup of 1 % / full", "backup|1 %", "backup|full"),
    ("backup of 10 % / 1 %", "backup|10 %", "backup|1 %"),
    ("list of 1000 volumes, ms", "list|1000", ""),
    ("list of 1000 volumes / start of Python", "list|1000", "list|python"),
    ("prlctl --version / start of Python", "list|none", "list|python"),
)


def report(found: Samples) -> None:
    """Print the ratios that are known."""
    for title, ours, theirs in RATIOS:
        if ours not in found:
            continue
        value = statistics.median(found[ours])
        if theirs not in found:
            print(f"{title:45} {value:8.2f}", flush=True)
            continue
        value /= statistics.median(found[theirs])
        rounds = sorted(one / two for one, two in zip(found[ours], found[theirs], strict=False))
        spread = f"  ({rounds[len(rounds) // 4]:.2f} to {rounds[-1 - len(rounds) // 4]:.2f})"
        print(f"{title:45} {value:8.2f}{spread if len(rounds) > 3 else ''}", flush=True)


def main() -> int:
    """Measure, print, clean."""
    parser = argparse.ArgumentParser(prog="script/bench storage", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each job of fio")
    parser.add_argument("--only", default="io,provisioning,snapshots,backups,volumes")
    parser.add_argument("--work", default="/var/tmp", help="where the pools are made")
    parser.add_argument("--json", metavar="FILE", help="write every number to FILE")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="pvs.", dir=options.work))
    found: Samples = {}
    wanted = options.only.split(",")
    try:
        with pool(work, "xfs") as xfs:
            if "io" in wanted:
                found |= io(work, xfs, options.runs, options.seconds)
                report(found)
            for part in (provisioning, snapshots, backups):
                if part.__name__ in wanted:
                    say(part.__name__)
                    found |= part(work, xfs, options.runs)
        if "volumes" in wanted:
            say("volumes")
            found |= volumes(work, options.runs)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(found)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
