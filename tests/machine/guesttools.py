"""What the steps of the machine test share; standard library only."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PAYLOAD = Path("/payload")
SOURCES = Path("/opt/pyvz")
TEMPLATE = "debian-12-x86_64"
NAME = "m1"
MIB = 1 << 20
SLOW = 300.0  # seconds; this machine is emulated

STEPS: list[Callable[[], None]] = []


class Failed(AssertionError):
    """A step did not see what it must see."""


def step(function: Callable[[], None]) -> Callable[[], None]:
    """Put a function into the list of steps."""
    STEPS.append(function)
    return function


def run(*argv: str | Path, code: int | None = 0, timeout: float = SLOW) -> str:
    """Run a program, show it, insist on its exit code (None: any), return what it printed."""
    print("#", *argv, flush=True)
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace")
        raise Failed(f"{argv[0]} did not end in {timeout:.0f} s; it said\n{said}") from None
    print(done.stdout, end="", flush=True)
    if code is not None and done.returncode != code:
        raise Failed(f"{' '.join(map(str, argv))}: exit {done.returncode}, not {code}")
    return done.stdout


def ct(*argv: str, code: int | None = 0, timeout: float = SLOW) -> str:
    """Run a program inside the container."""
    return run("prlctl", "exec", NAME, *argv, code=code, timeout=timeout)


def need(condition: object, what: str) -> None:
    """Fail unless it is so."""
    if not condition:
        raise Failed(what)


def until(condition: Callable[[], object], what: str, timeout: float = SLOW) -> None:
    """Wait for it."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"not after {timeout:.0f} s: {what}")
        time.sleep(0.5)


def status() -> str:
    """The container's state in one word."""
    return run("prlctl", "status", NAME).split()[-1]


def uuid() -> str:
    """The container's UUID without braces."""
    rows = run("prlctl", "list", "-a", "-H", "-o", "uuid,name")
    for row in rows.splitlines():
        if row.split()[-1:] == [NAME]:
            return row.split()[0].strip("{}")
    raise Failed("prlctl list does not know it")


def groups() -> list[Path]:
    """Every cgroup of the container that the node sees, outermost first."""
    name = uuid()
    found = []
    for folder, _, _ in os.walk("/sys/fs/cgroup"):
        if name in os.path.basename(folder):
            found.append(Path(folder))
    return found


def limit(file: str) -> str:
    """A limit of the container as the kernel has it: the outermost cgroup that has the file."""
    for group in groups():
        if (group / file).exists():
            value = (group / file).read_text().strip()
            print(f"{group / file}: {value}", flush=True)
            return value
    raise Failed(f"no cgroup of the container has {file}: {groups()}")


def booted() -> str:
    """Wait for systemd inside to be through with booting; early on it cannot be asked yet."""
    answer = ""

    def over() -> bool:
        nonlocal answer
        answer = ct("systemctl", "is-system-running", "--wait", code=None).strip()
        return answer in {"running", "degraded"}

    until(over, "systemd inside says that it is up")
    return answer


def running() -> None:
    """See to it that the container runs and its systemd is through with booting."""
    if status() != "running":
        run("prlctl", "start", NAME)
    booted()


def pid_of(pattern: str) -> int:
    """The pid of the one process whose command line matches."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if re.search(pattern, command):
                return int(entry.name)
    raise Failed(f"no process {pattern}")
