"""The leak fixture: after a kernel or system test the machine is as it was before.

Compared are mounts, loop devices, named network namespaces, cgroups below our parents, network
links, nft tables, our descendants, and this process's open descriptors.  pytest is made a
sub-reaper, so that a daemon left behind by a test becomes its child and is found, whoever started
it; descendants that a test leaves are named, killed and reaped.

What appears may also be the work of somebody else's tests on the same machine: of another worker
of this run, or of another run.  Then only what is certainly ours is judged: descendants,
descriptors, and objects whose name contains one of our temporary directories or the instance name
of a node in one of them.  What nobody could be blamed for is found by `session_guard`, which
compares the machine before the first worker began and after the last one ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvz.errors import Busy
from pyvz.linux import libnftables
from pyvz.linux.lxcfs import Lxcfs
from pyvz.operations import pool
from pyvz.store.paths import Paths

GUARDED = ("kernel", "system", "nodes")
PATIENCE = 60.0  # seconds that the kernel may take to let go (xfs on a dead disk tries for 5)
OTHERS = 60.0  # seconds that other tests may take to let go of what they never asked for
CGROUP = "/sys/fs/cgroup"
_PR_SET_CHILD_SUBREAPER = 36
_roots: list[Path] = []


@pytest.fixture
def short_root() -> Iterator[Path]:
    """A directory of its own with a short name (a socket path has at most 107 bytes)."""
    path = Path(tempfile.mkdtemp(prefix="pv-", dir="/tmp"))
    _roots.append(path)
    yield path
    close_node(path)
    nodes = [path, *path.iterdir()]
    _roots.extend(nodes[1:])
    for node in nodes:
        end_lxcfs(node)
    _no_mounts_below(path)
    _remove(path)


def close_node(root: Path) -> None:
    """Unmount what a node keeps mounted as long as its machine runs: its pool and /vz/root."""
    deadline = time.monotonic() + OTHERS
    while (root / "vz").is_dir():
        try:
            pool.close_pools(Paths(root))
        except Busy:  # another test has a copy of our mounts in a namespace of its own
            if time.monotonic() > deadline:
                raise
        else:
            return


def end_lxcfs(root: Path) -> None:
    """End what a vzd leaves to its successor when it ends while containers run, or is killed."""
    run = Paths(root).run
    if (run / "lxcfs").is_dir():
        Lxcfs(run / "lxcfs", run / "lxcfs.log").end()


def _no_mounts_below(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while left := [x for x in _mounts() if f" {path}/" in x or x.endswith(f" {path}")]:
        if time.monotonic() > deadline:
            pytest.fail(f"still mounted below {path}: {left}", pytrace=False)
        time.sleep(0.05)


def _remove(path: Path) -> None:
    """Remove a tree into which who is about to end may still write a file."""
    deadline = time.monotonic() + PATIENCE
    while path.exists():
        try:
            shutil.rmtree(path)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def session_guard() -> Callable[[], list[str]]:
    """Look at the machine now; returns what tells what is there more than now when it is called."""
    libnftables.run("list tables")
    before = snapshot()

    def left() -> list[str]:
        return _settle(before)

    return left


@pytest.fixture(autouse=True)
def leak_guard(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Fail a kernel or system test that leaves something behind, naming it."""
    if not any(part in GUARDED for part in request.node.path.parts) or os.geteuid() != 0:
        yield
        return
    base = tmp_path_factory.getbasetemp()
    if base not in _roots:
        _roots.append(base)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libnftables.run("list tables")  # keeps its socket open as long as the process lives
    before = snapshot()
    yield
    problems = _settle(before)
    if problems:
        _reap_children(before)
        pytest.fail("left behind:\n" + "\n".join(problems), pytrace=False)


def snapshot() -> dict[str, set[str]]:
    """Return kind -> the names of what is there now."""
    return {
        "mount": _mounts(),
        "loop device": _loops(),
        "network namespace": _listed("/run/netns"),
        "cgroup": _cgroups(),
        "network link": _listed("/sys/class/net"),
        "nft table": _nft_tables(),
        "process": _descendants(),
        "descriptor": _descriptors(),
    }


def _settle(before: dict[str, set[str]]) -> list[str]:
    """Give the kernel a moment, then return what is there more than before."""
    deadline = time.monotonic() + PATIENCE
    while True:
        gc.collect()
        _reap_zombies()
        now = snapshot()
        new = more(before, now)
        if not new or time.monotonic() >= deadline:
            break
        if not _attributable(new):
            return []
        time.sleep(0.05)
    return [f"  {kind}: {name}" for kind, name in _attributable(new)]


def more(before: dict[str, set[str]], now: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return (kind, name) of what there is more; a process stays the same when it calls exec."""
    pids = {name.split(" ")[0] for name in before["process"]}
    return [
        (kind, name)
        for kind in now
        for name in sorted(now[kind] - before[kind])
        if kind != "process" or name.split(" ")[0] not in pids
    ]


def _attributable(new: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if not new or not _others_test():
        return new
    marks = [str(root) for root in _roots]
    marks += ["pyvz-" + hashlib.sha256(mark.encode()).hexdigest()[:8] for mark in marks]
    return [
        (kind, name)
        for kind, name in new
        if kind in ("process", "descriptor") or any(mark in name for mark in marks)
    ]


def _others_test() -> bool:
    """Whether a pytest runs that is neither we nor below or above us, or another worker of ours."""
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        return True
    ours = {os.getpid(), *map(int, (name.split(" ")[0] for name in _descendants()))}
    pid = os.getpid()
    while pid > 1:
        pid = _parent(pid)
        ours.add(pid)
    others = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()} - ours
    return any(b"pytest" in command_line(each) for each in others)


def command_line(pid: int) -> bytes:
    """What /proc says of a process; nothing when it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _mounts() -> set[str]:
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split(" ")
        dash = words.index("-", 6)
        found.add(f"{words[dash + 1]} {words[dash + 2]} on {words[4]}")
    return found


def _loops() -> set[str]:
    found = set()
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found.add(f"/dev/{file.parts[3]} {file.read_text().strip()}")
    return found


def _listed(directory: str) -> set[str]:
    with contextlib.suppress(FileNotFoundError):
        return set(os.listdir(directory))
    return set()


def _cgroups() -> set[str]:
    """Everything below pyvz*.slice and machine.slice, and foreign names of ours, everywhere."""
    tops = [CGROUP, *(entry.path for entry in os.scandir(CGROUP) if entry.is_dir())]
    found: set[str] = set()
    for top in tops:
        for parent in _subdirectories(top):
            name = os.path.basename(parent)
            if name.startswith("pyvz"):
                found.add(parent)
            if name.startswith("pyvz") or name == "machine.slice":
                found.update(_subdirectories(parent))
    return found


def _subdirectories(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    return []


def _nft_tables() -> set[str]:
    program = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin")
    if program is None:
        return set()
    result = subprocess.run(
        [program, "list", "tables"], check=False, capture_output=True, text=True, timeout=120
    )
    return set(result.stdout.splitlines())


def _descendants() -> set[str]:
    """ "pid program ..." of every living process below this one."""
    found: set[str] = set()
    waiting = [os.getpid()]
    while waiting:
        for child in _children(waiting.pop()):
            waiting.append(child)
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
                state = Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2][:1]
                if state not in "ZX":
                    found.add(f"{child} {line.decode(errors='replace').strip()}")
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{task}/children").read_text()
            found += map(int, text.split())
    return found


def _reap_zombies() -> None:
    """Reap orphans that came to us as sub-reaper and have ended; not what a Popen waits for."""
    zombies = []
    for pid in _children(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] == "Z":
                zombies.append(pid)
    if not zombies:
        return
    awaited = {
        found.pid
        for found in gc.get_objects()
        if isinstance(found, subprocess.Popen) and found.returncode is None
    }
    for pid in set(zombies) - awaited:
        with contextlib.suppress(OSError):
            os.waitpid(pid, os.WNOHANG)


def _reap_children(before: dict[str, set[str]]) -> None:
    """End what a failed test left running, so that the next test starts clean."""
    deadline = time.monotonic() + PATIENCE
    while left := [name for kind, name in more(before, snapshot()) if kind == "process"]:
        for name in left:
            with contextlib.suppress(OSError):
                os.kill(int(name.split(" ")[0]), signal.SIGKILL)
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    _reap_zombies()


def _descriptors() -> set[str]:
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{entry}")
            if not target.startswith(("/proc/", "/dev/pts")):
                found.add(f"{entry} -> {target}")
    return found
