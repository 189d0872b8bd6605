"""An open memory.pressure without a watch is always ready; with one it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvz.linux import pressure

pytestmark = pytest.mark.requires("root", "cgroup2")

# Opens the file that it is given, and tells whether it is ready whenever it is asked.
HOLDER = """
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDWR)
poll = select.poll()
poll.register(fd, select.POLLPRI)
for _ in sys.stdin:
    print(len(poll.poll(0)), flush=True)
"""


@pytest.fixture
def group() -> Iterator[Path]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    top = next(line.split()[4] for line in lines if " - cgroup2 " in line)
    made = Path(top) / f"pyvz-test-pressure-{os.getpid()}"
    made.mkdir()
    yield made
    made.rmdir()


@pytest.mark.parametrize("kind", ["usual", "told"])
def test_a_file_gets_its_watch(group: Path, kind: str) -> None:
    file = group / "memory.pressure"
    if not file.exists():
        pytest.skip("the kernel measures no pressure")
    told = {"MEMORY_PRESSURE_WRITE": "ZnVsbCAxNTAwMDAgMjAwMDAwMAA="} if kind == "told" else {}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, os.fspath(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **told},
    ) as holder:
        (group / "cgroup.procs").write_text(str(holder.pid))
        assert ready(holder)
        assert pressure.watch_again(os.fspath(group)) == 1
        assert not ready(holder)
        assert pressure.watch_again(os.fspath(group)) == 0  # it has one
        holder.communicate(timeout=30)


def ready(holder: subprocess.Popen[str]) -> bool:
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write("?\n")
    holder.stdin.flush()
    return holder.stdout.readline() == "1\n"
