"""exec, enter and console: bytes, signals, exit status and the terminal, without a container.

The fake vzd runs a local program and hands its pipes, or the master of its pty, to the real
command line, which runs as a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shlex
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fake import Answer, FakeServer, Parameters, Refusal

from pyvz.cli.session import DetachKeys, login_shell, shell_command

REPO = Path(__file__).resolve().parents[2]
UUID = "1b3c7c7e-1111-4a4a-8b8b-000000000001"
LAUNCH = (
    f"import sys; sys.path.insert(0, {os.fspath(REPO / 'src')!r}); "
    "from pyvz.cli.{} import main; sys.exit(main(sys.argv[1:]))"
)
MEBI = 1 << 20


class Guest(FakeServer):
    """A vzd whose only container is this machine."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.status = "running"
        self.handlers |= {
            "Environment.Status": self._status,
            "Environment.Exec": self._exec,
            "Environment.SignalSession": self._signal,
            "Environment.Console": self._console,
        }
        self.console, self._node_end = socket.socketpair()

    def _status(self, call: Parameters) -> Parameters:
        known = call["ref"] in {UUID, "web"}
        return {
            "uuid": UUID,
            "kind": "ct",
            "status": self.status,
            "mounted": True,
            "exists": known,
        }

    def _exec(self, call: Parameters) -> Iterator[Parameters | Answer]:
        if self.status != "running":
            raise Refusal("NotRunning", "web is not running")
        if call.get("terminal"):
            yield from self._at_terminal(call)
            return
        pipes = [os.pipe() for _ in range(3)]
        stdin, stdout, stderr = pipes
        process = subprocess.Popen(
            call["argv"], stdin=stdin[0], stdout=stdout[1], stderr=stderr[1], start_new_session=True
        )
        for fd in (stdin[0], stdout[1], stderr[1]):
            os.close(fd)
        self.processes["s1"] = process
        yield Answer(
            {"session": {"id": "s1", "streams": ["stdin", "stdout", "stderr"]}},
            (stdin[1], stdout[0], stderr[0]),
        )
        yield from self._ended(process)

    def _at_terminal(self, call: Parameters) -> Iterator[Parameters | Answer]:
        master, slave = pty.openpty()
        size = call["terminal"]
        termios.tcsetwinsize(slave, (size["rows"], size["cols"]))
        process = subprocess.Popen(
            ["setsid", "-c", "-w", *call["argv"]],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "PS1": "guest$ ", "HOME": "/", "TERM": size["term"]},
        )
        os.close(slave)
        self.processes["t1"] = process
        yield Answer({"session": {"id": "t1", "streams": ["terminal"]}}, (master,))
        yield from self._ended(process)

    def _ended(self, process: subprocess.Popen[bytes]) -> Iterator[Parameters]:
        code = process.wait(200)
        yield {"result": {"exit_status": 128 - code if code < 0 else code}}

    def _signal(self, call: Parameters) -> Parameters:
        self.processes[call["session"]].send_signal(call["signal"])
        return {}

    def _console(self, _: Parameters) -> Answer:
        return Answer({"stream": 0}, (os.dup(self._node_end.fileno()),))

    def close(self) -> None:
        """End what runs."""
        super().close()
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.console.close()
        self._node_end.close()


@pytest.fixture
def guest(short_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    """The fake vzd."""
    monkeypatch.setenv("PYVZ_ROOT", os.fspath(short_root))
    fake = Guest(short_root)
    yield fake
    fake.close()


def command(program: str, *words: str) -> list[str]:
    """Return the argv of a command line of ours."""
    return [sys.executable, "-IS", "-c", LAUNCH.format(program), *words]


def run(program: str, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command line of ours."""
    options.setdefault("timeout", 30)
    options.setdefault("input", b"")
    return subprocess.run(command(program, *words), capture_output=True, check=False, **options)


@pytest.mark.parametrize(
    ("program", "words", "code"),
    [
        ("prlctl", ["exec", "web", "exit 7"], 7),
        ("prlctl", ["exec", "web", "kill -9 $$"], 137),
        ("prlctl", ["exec", "web", "--without-shell", "false"], 1),
        ("vzctl", ["exec", "web", "exit 7"], 8),
        ("vzctl", ["exec", "web", "true"], 0),
        ("vzctl", ["exec2", "web", "exit 7"], 7),
        ("vzctl", ["exec3", "web", "false"], 1),
    ],
)
def test_exit_status(guest: Guest, program: str, words: list[str], code: int) -> None:
    done = run(program, *words)
    assert (done.returncode, done.stderr) == (code, b"")


def test_streams_stay_apart(guest: Guest) -> None:
    done = run("prlctl", "exec", "web", "cat; echo problem >&2", input=b"some words")
    assert (done.stdout, done.stderr) == (b"some words", b"problem\n")


def test_words_are_joined_for_the_shell_and_kept_without_it(guest: Guest) -> None:
    assert run("prlctl", "exec", "web", "echo", "a  b", "$((1+1))").stdout == b"a b 2\n"
    done = run("prlctl", "exec", "web", "--without-shell", "echo", "a  b", "$((1+1))")
    assert done.stdout == b"a  b $((1+1))\n"
    assert run("vzctl", "exec3", "web", "echo", "a  b").stdout == b"a  b\n"


def test_options_of_the_command_are_its_own(guest: Guest) -> None:
    assert run("prlctl", "exec", "web", "echo", "--help", "-l").stdout == b"--help -l\n"
    assert run("vzctl", "exec2", "web", "echo", "--debug").stdout == b"--debug\n"


def test_commands_from_stdin(guest: Guest) -> None:
    done = run("vzctl", "exec2", "web", "-", input=b"echo one; exit 3")
    assert (done.returncode, done.stdout) == (3, b"one\n")


def test_much_data_both_ways(guest: Guest) -> None:
    data = os.urandom(8 * MEBI)
    assert run("prlctl", "exec", "web", "cat", input=data).stdout == data


def test_nothing_is_lost_at_the_end(guest: Guest) -> None:
    # The program ends with a full pipe, whose reader has not begun to read.
    reader = subprocess.Popen(
        command("prlctl", "exec", "web", "head -c 60000 /dev/zero; echo end"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    time.sleep(0.5)
    output, _ = reader.communicate(timeout=120)
    assert len(output) == 60004
    assert reader.returncode == 0


def test_a_process_in_the_background_does_not_hold_us(guest: Guest) -> None:
    begun = time.monotonic()
    done = run("prlctl", "exec", "web", "sleep 300 & echo started")
    assert done.stdout == b"started\n"
    assert time.monotonic() - begun < 200


def test_a_program_that_closes_its_stdin(guest: Guest) -> None:
    done = run("prlctl", "exec", "web", "exec <&-; sleep 0.3; echo fine", input=b"x" * MEBI)
    assert (done.returncode, done.stdout) == (0, b"fine\n")


def test_our_reader_goes_away(guest: Guest) -> None:
    writer = subprocess.Popen(
        command("prlctl", "exec", "web", "--without-shell", "yes"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert writer.stdout is not None
    assert writer.stdout.read(4) == b"y\ny\n"
    writer.stdout.close()
    assert writer.wait(120) == 128 + signal.SIGPIPE
    assert writer.stderr is not None
    assert writer.stderr.read() == b""
    writer.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_reach_the_program(guest: Guest, number: signal.Signals) -> None:
    script = (
        f"trap 'echo caught; exit 5' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    )
    process = subprocess.Popen(
        command("prlctl", "exec", "web", script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert (output, process.returncode) == (b"caught\n", 5)


def test_closed_standard_files(guest: Guest) -> None:
    program = shlex.join(command("prlctl", "exec", "web", "echo fine"))
    done = subprocess.run(
        ["sh", "-c", program + " <&- 2>&-"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"fine\n")


def test_not_running(guest: Guest) -> None:
    guest.status = "stopped"
    done = run("prlctl", "exec", "web", "true")
    assert done.returncode == 255
    assert done.stderr == b"Failed to execute the command in the CT: web is not running\n"
    assert run("vzctl", "exec", "web", "true").returncode == 8
    assert run("vzctl", "exec2", "web", "true").returncode == 31


def test_runscript(guest: Guest, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("read word || echo no stdin\nexit 4\n")
    done = run("vzctl", "runscript", "web", os.fspath(script), input=b"ours\n")
    assert (done.returncode, done.stdout) == (4, b"no stdin\n")
    assert guest.named("Environment.Exec")[0]["offline"] is True


class Terminal:
    """A command line of ours at a terminal that the test types at."""

    def __init__(self, *argv: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvp(argv[0], argv)
        self.seen = b""
        self.at = 0

    def expect(self, text: bytes) -> None:
        """Read until TEXT comes, after what was expected before it."""
        end = time.monotonic() + 120
        while text not in self.seen[self.at :]:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.seen!r}"
            data = self._read()
            assert data, f"it ended before {text!r}: {self.seen!r}"
            self.seen += data
        self.at = self.seen.index(text, self.at) + len(text)

    def _read(self) -> bytes:
        try:
            return os.read(self.fd, 65536)
        except OSError:
            return b""

    def type(self, text: bytes) -> None:
        """Type TEXT."""
        os.write(self.fd, text)

    def end(self) -> int:
        """Read to the end; return the exit code."""
        while data := self._read():
            self.seen += data
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_enter_at_a_terminal(guest: Guest) -> None:
    terminal = Terminal(*command("vzctl", "enter", "web"))
    terminal.expect(f"entered into CT {UUID}\r\n".encode())
    termios.tcsetwinsize(terminal.fd, (44, 123))
    terminal.type(b"until stty size | grep '44 123'; do sleep 0.1; done\n")
    terminal.expect(b"44 123\r\n")
    terminal.type(b"sh -c 'echo be\"\"gun; exec sleep 600'\n")  # by itself: it has the terminal
    terminal.expect(b"begun")
    terminal.type(b"\x03")  # a key for the program inside, no signal for us
    time.sleep(0.3)
    terminal.type(b"exit 6\n")
    assert terminal.end() == 6
    assert terminal.seen.endswith(f"exited from CT {UUID}\r\n".encode())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_after_a_signal(guest: Guest, number: signal.Signals) -> None:
    terminal = Terminal(*command("prlctl", "enter", "web"))
    before = termios.tcgetattr(terminal.fd)
    terminal.expect(b"entered into")
    end = time.monotonic() + 60
    while termios.tcgetattr(terminal.fd) == before and time.monotonic() < end:
        time.sleep(0.02)
    assert not termios.tcgetattr(terminal.fd)[3] & termios.ECHO
    os.kill(terminal.pid, number)
    terminal.expect(b"exited from")
    # The slave side may be gone already; the master still has the modes.
    assert termios.tcgetattr(terminal.fd)[:4] == before[:4]
    assert terminal.end() == 128 + number


def test_enter_without_a_terminal_reads_commands(guest: Guest) -> None:
    done = run("prlctl", "enter", "web", input=b"echo $((40 + 2)); exit 9\n")
    assert (done.returncode, done.stdout) == (9, b"42\n")


def test_console(guest: Guest) -> None:
    guest.console.sendall(b"scroll-back\r\n")
    terminal = Terminal(*command("vzctl", "console", "web"))
    terminal.expect(b"type Enter ESC . to detach")
    terminal.expect(b"scroll-back")
    terminal.type(b"ls\r")
    assert guest.console.recv(100) == b"ls\r"
    terminal.type(b"\x1b[A")  # an arrow key is passed on, though it begins with Esc
    assert guest.console.recv(100) == b"\x1b[A"
    terminal.type(b"\r")
    assert guest.console.recv(100) == b"\r"
    terminal.type(b"\x1b")
    guest.console.settimeout(60)
    assert guest.console.recv(100) == b"\x1b"  # held for a second, then it was meant
    terminal.type(b"\r\x1b.")
    assert terminal.end() == 0
    assert terminal.seen.endswith(f"Detached from CT {UUID}\r\n".encode())


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(guest: Guest, terminal: bool) -> None:
    def start(_: Parameters) -> Iterator[Parameters]:
        for done in (1, 50, 100):
            yield {"progress": {"stage": "Copying", "done": done, "total": 100, "unit": "files"}}
            time.sleep(0.2)
        yield {"result": {}}

    guest.handlers["Environment.Start"] = start
    if not terminal:
        assert run("prlctl", "start", "web").stderr == b""
        return
    shown = Terminal(*command("prlctl", "start", "web"))
    shown.expect(b"Copying")
    shown.expect(b"100%")
    shown.expect(b"successfully started.")
    assert shown.end() == 0


def test_console_ends_with_the_container(guest: Guest) -> None:
    terminal = Terminal(*command("prlctl", "console", "web"))
    terminal.expect(b"Attached")
    threading.Timer(0.3, lambda: guest.console.shutdown(socket.SHUT_RDWR)).start()
    assert terminal.end() == 0


def test_detach_keys() -> None:
    keys = DetachKeys()
    assert keys(b"\x1b.") is None
    keys = DetachKeys()
    assert keys(b"a\x1b.") == b"a\x1b."
    assert keys(b"\r\x1b") == b"\r"
    assert keys.held
    assert keys(b".") is None


@pytest.mark.parametrize("interactive", [True, False])
def test_shells(interactive: bool) -> None:
    assert login_shell(interactive=interactive)[0] == "/bin/sh"
    assert shell_command(["a", "b"])[-1] == "a b"
