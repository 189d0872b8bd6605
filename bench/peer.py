"""What the bench must know about a container manager: one command line for each operation."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

TIMEOUT = 300.0  # seconds, for any one command


def processor_time(pid: int) -> float:
    """Return the seconds that all threads of a process have run (/proc/PID/task/TID/schedstat):
    what a busy machine does not change.
    """
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


class Place(NamedTuple):
    """Where a peer may work: a scratch folder, and the same two images for everybody.

    image: a Debian 12 with systemd as .tar; tiny: one file as .tar, never started, to fill lists.
    """

    work: Path
    image: Path
    tiny: Path


class Missing(Exception):
    """The peer, or one of its operations, cannot be had here (the text says why)."""


class Peer:
    """A container manager.  A method that gives an empty list: it has no such operation."""

    name = ""
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    suite = ""  # where the packages are, when not in the node's own suite

    def __init__(self, place: Place) -> None:
        self.place = place
        self.home = place.work / self.name

    def setup(self) -> None:
        """Make it ready to be measured.  Raises Missing."""

    def clean(self) -> None:
        """Take away all that setup and the operations made."""

    def create(self, name: str) -> list[str]:
        """A container from the image, stopped."""
        raise NotImplementedError

    def create_tiny(self, name: str) -> list[str]:
        """A container that only fills the list."""
        return []

    def start(self, name: str) -> list[str]:
        """Start it; the command may return before the system inside is up."""
        raise NotImplementedError

    def exec(self, name: str, *argv: str) -> list[str]:
        """Run a program inside."""
        raise NotImplementedError

    def listing(self) -> list[str]:
        """All containers with their state."""
        return []

    def limit(self, name: str, percent: int) -> list[str]:
        """Limit the running one to so much of one CPU."""
        return []

    def stop(self, name: str) -> list[str]:
        """Shut it down in order."""
        raise NotImplementedError

    def kill(self, name: str) -> list[str]:
        """Stop it at once."""
        raise NotImplementedError

    def delete(self, name: str) -> list[str]:
        """Remove the stopped one with its files."""
        raise NotImplementedError

    def init(self, name: str) -> int:
        """The pid of its init on the node, 0 when it does not run."""
        raise NotImplementedError

    def daemons(self) -> list[int]:
        """Processes that serve all containers."""
        return []

    def environment(self) -> dict[str, str]:
        """What its programs need in the environment."""
        return {}

    def run(self, argv: Sequence[str], *, check: bool = True) -> str:
        """Run one of its commands; return what it printed."""
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={**os.environ, **self.environment()},
        )
        if check and done.returncode != 0:
            words = (done.stderr or done.stdout).strip()[-500:]
            raise Missing(f"{' '.join(argv)}: exit {done.returncode}: {words}")
        return done.stdout

    def timed(self, argv: Sequence[str]) -> float:
        """Run a command and return its seconds.  Output goes to files: no pipe waits for us."""
        with (self.place.work / "errors").open("w+b") as errors:
            begun = time.perf_counter()
            done = subprocess.run(
                argv,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                timeout=TIMEOUT,
                env={**os.environ, **self.environment()},
            )
            took = time.perf_counter() - begun
            if done.returncode != 0:
                errors.seek(0)
                words = errors.read().decode(errors="replace").strip()[-500:]
                raise Missing(f"{' '.join(argv)}: exit {done.returncode}: {words}")
        return took


def script(path: Path, text: str) -> None:
    """Write a program of a few lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def require(programs: Sequence[str]) -> None:
    """Raise Missing when a program is not installed."""
    for program in programs:
        if shutil.which(program) is None and not Path(program).exists():
            raise Missing(f"{program} is not installed")


def until(condition: Callable[[], object], what: str, timeout: float = 60.0) -> None:
    """Wait for a condition, looking every 5 ms.  Raises Missing."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise Missing(f"not after {timeout:.0f} s: {what}")
        time.sleep(0.005)


def mounts_below(folder: Path) -> Iterator[str]:
    """Mount points below a folder, innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    return iter(sorted((p for p in points if p.startswith(f"{folder}/")), reverse=True))


def unmount_below(folder: Path) -> None:
    """Unmount what a peer left below its folder."""
    for point in mounts_below(folder):
        subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)


def parent(pid: int) -> int:
    """The parent of a process, 0 when it is gone."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def pss(pid: int) -> int:
    """The proportional set size of a process, in KiB."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
