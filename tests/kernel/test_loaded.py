"""Programs that are loaded ahead and are told their arguments later (linux/loaded.py)."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvz.linux import loaded
from pyvz.linux.loaded import Call, Loaded

ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MALLOC_TOP_PAD_": str(4 << 20)}
GETPPID, UMASK, OPENAT, WRITE = 110, 95, 257, 1


@pytest.fixture
def made() -> Iterator[list[Loaded]]:
    programs: list[Loaded] = []
    yield programs
    for each in programs:
        each.kill()


def load(made: list[Loaded], path: str, output: Path | None = None) -> Loaded:
    def prepare() -> None:
        if output is not None:
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT, 0o600), 1)

    program = Loaded.start(path, Path(path).name, ENV, prepare)
    made.append(program)
    return program


def ended(program: Loaded) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(program.pid, 0)[1])


def test_it_gets_arguments_as_by_execve(made: list[Loaded], tmp_path: Path) -> None:
    words = ["printf", "%s|", "a", "", "b c", "ü", "x" * 3000]
    for count in (len(words), len(words) - 1):  # an even and an odd number of pointers
        output = tmp_path / f"out{count}"
        program = load(made, "/usr/bin/printf", output)
        program.go(words[:count])
        assert ended(program) == 0
        assert output.read_text() == "".join(f"{word}|" for word in words[2:count])


def test_it_shows_its_arguments_and_its_environment(made: list[Loaded]) -> None:
    program = load(made, "/usr/bin/sleep")
    proc = Path(f"/proc/{program.pid}")
    assert proc.joinpath("cmdline").read_bytes() == b"sleep\0"
    words = ["sleep", "600"]
    scratch = program.scratch(words)
    program.perform([program.showing(words, scratch)], scratch)
    program.go(words)
    assert proc.joinpath("cmdline").read_bytes() == b"sleep\x00600\0"
    assert proc.joinpath("environ").read_bytes().split(b"\0")[:-1] == [
        f"{name}={value}".encode() for name, value in ENV.items()
    ]
    assert "TracerPid:\t0\n" in proc.joinpath("status").read_text()


def test_its_environment_ends_before_the_room(made: list[Loaded], tmp_path: Path) -> None:
    program = load(made, "/usr/bin/env", tmp_path / "out")
    program.go(["env"])
    assert ended(program) == 0
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines == [f"{name}={value}" for name, value in ENV.items()]


def test_it_does_system_calls_before(made: list[Loaded], tmp_path: Path) -> None:
    program = load(made, "/usr/bin/sh", tmp_path / "out")
    argv = ["sh", "-c", "umask"]
    scratch = program.scratch(argv)
    calls = [Call("umask", UMASK, (0o057,)), Call("getppid", GETPPID)]
    assert program.perform(calls, scratch)[1] == os.getpid()
    program.go(argv)
    assert ended(program) == 0
    assert (tmp_path / "out").read_text() == "0057\n"


def test_a_call_that_fails_is_named(made: list[Loaded]) -> None:
    program = load(made, "/usr/bin/true")
    scratch = program.scratch(["true"])
    missing = scratch.put(b"/no/such/file\0")
    with pytest.raises(OSError, match="the log: No such file"):
        program.perform([Call("the log", OPENAT, (-100, missing, os.O_RDONLY))], scratch)
    scratch = program.scratch(["true"])
    assert program.perform([Call("write", WRITE, (99, 0, 0), optional=True)], scratch) == [-9]


@pytest.mark.requires("program:qemu-system-x86_64")
def test_its_heap_is_touched_ahead(made: list[Loaded]) -> None:
    program = load(made, "/usr/bin/qemu-system-x86_64")  # its libraries' constructors have a heap
    status = Path(f"/proc/{program.pid}/status").read_text()
    anonymous = next(line.split()[1] for line in status.splitlines() if "RssAnon" in line)
    assert int(anonymous) > 4 << 10  # KiB: without it some hundred


def test_what_cannot_be_loaded_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("not a program")
    script.chmod(0o755)
    for path in ("/no/such/program", os.fspath(script)):
        with pytest.raises(OSError, match="it ended"):
            Loaded.start(path, "x", ENV, lambda: None)


def test_a_replaced_program_is_not_fresh(made: list[Loaded], tmp_path: Path) -> None:
    path = tmp_path / "sleep"
    shutil.copy("/usr/bin/sleep", path)
    program = load(made, os.fspath(path))
    assert loaded.fresh(program.pid)
    shutil.copy("/usr/bin/sleep", tmp_path / "newer")
    (tmp_path / "newer").rename(path)
    assert not loaded.fresh(program.pid)
    program.kill()
    assert not loaded.fresh(program.pid)


def test_what_fits() -> None:
    assert loaded.fits(["qemu", *["x"] * loaded.SLOTS])
    assert not loaded.fits(["qemu", *["x"] * (loaded.SLOTS + 1)])
    assert not loaded.fits(["qemu", "x" * loaded.TEXTS])


def test_it_dies_with_who_loaded_it() -> None:
    code = (
        "from pyvz.linux.loaded import Loaded\n"
        f"print(Loaded.start('/usr/bin/sleep', 'sleep', {ENV!r}, lambda: None).pid, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\0"
        handle = os.pidfd_open(pid)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            signal.pidfd_send_signal(handle, 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("it lives on")
    os.close(handle)
