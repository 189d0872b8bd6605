"""linux/run.py against real programs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from engine import wait_for
from pyvz.errors import Cancelled, CommandFailed, NoSpace, Timeout
from pyvz.linux import run


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_returns_what_the_program_said():
    result = run.run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)
    assert result == (3, "out\n", "err\n")


def test_environment_is_clean():
    os.environ["PYVZ_SECRET"] = "x"
    try:
        text = run.run(["env"], env={"VEID": "101"}).stdout
    finally:
        del os.environ["PYVZ_SECRET"]
    names = {line.partition("=")[0] for line in text.splitlines()}
    assert names == {"PATH", "LC_ALL", "HOME", "VEID"}


def test_standard_input_is_empty_unless_given():
    assert run.run(["cat"]).stdout == ""
    assert run.run(["cat"], input="").stdout == ""
    big = "x" * 3_000_000
    assert run.run(["cat"], input=big).stdout == big


def test_program_that_does_not_read_its_input():
    assert run.run(["true"], input="x" * 3_000_000).code == 0


def test_no_descriptor_but_the_named_ones():
    with open("/dev/null") as file:
        os.set_inheritable(file.fileno(), True)
        listed = run.run(["ls", "/proc/self/fd"]).stdout.split()
        assert listed == ["0", "1", "2", "3"]  # 3 is the directory that ls reads
        fd = file.fileno()
        text = run.run(["readlink", f"/proc/self/fd/{fd}"], pass_fds=[fd]).stdout
        assert text == "/dev/null\n"


def test_failure_tells_the_last_words():
    with pytest.raises(CommandFailed) as error:
        run.run(["sh", "-c", "echo why >&2; exit 4"])
    assert error.value.message == "sh failed with status 4"
    assert error.value.details == "why"


def test_failure_by_signal():
    with pytest.raises(CommandFailed, match="sh was killed by SIGKILL"):
        run.run(["sh", "-c", "kill -9 $$"])


def test_full_disk_has_its_own_error():
    with pytest.raises(NoSpace):
        run.run(["sh", "-c", "/bin/echo x > /dev/full"])


def test_program_that_is_not_there():
    with pytest.raises(CommandFailed, match="no-such-program: not installed"):
        run.run(["no-such-program"])
    with pytest.raises(CommandFailed, match="no directory /nowhere"):
        run.run(["true"], cwd="/nowhere")
    with pytest.raises(CommandFailed, match="Permission denied"):
        run.run(["/etc/passwd"])


PATIENCES = (0.7, 7.0, 70.0)  # seconds; the program must have begun before it is ended


def test_timeout_ends_the_whole_session(tmp_path):
    pids = tmp_path / "pids"
    script = f"""
        trap '' TERM
        sleep 300 & echo $! >> {pids}
        set -m; sleep 301 & echo $! >> {pids}    # a process group of its own
        echo $$ >> {pids}
        while :; do sleep 0.1; done
    """
    for timeout in PATIENCES:
        pids.write_text("")
        with pytest.raises(Timeout):
            run.run(["bash", "-c", script], timeout=timeout)
        if len(pids.read_text().split()) == 3:
            break
    assert len(pids.read_text().split()) == 3
    wait_for(lambda: not [pid for pid in map(int, pids.read_text().split()) if alive(pid)])


def test_polite_program_may_clean_up(tmp_path):
    mark = tmp_path / "clean"
    script = f"trap 'touch {mark}; exit 1' TERM; echo ready; while :; do sleep 0.05; done"
    for timeout in PATIENCES:
        with pytest.raises(Timeout):
            run.run(["sh", "-c", script], timeout=timeout)
        if mark.exists():
            break
    assert mark.exists()


def test_lines_come_while_it_runs(tmp_path):
    mark, seen = tmp_path / "mark", []

    def on_line(line: str) -> None:
        seen.append(line)
        if line == "one":
            mark.touch()  # it waits for that

    wait = f"until [ -e {mark} ]; do sleep 0.05; done"
    script = rf"echo one; {wait}; printf 'two\rthree'; printf 'four\n' >&2"
    run.run(["sh", "-c", script], on_line=on_line)
    assert sorted(seen) == ["four", "one", "three", "two"]


def test_cancelled_by_poll_and_by_line():
    def refuse(*_: object) -> None:
        raise Cancelled("no")

    begun = time.monotonic()
    with pytest.raises(Cancelled):
        run.run(["sleep", "60"], timeout=None, poll=refuse)
    with pytest.raises(Cancelled):
        run.run(["sh", "-c", "echo x; sleep 60"], on_line=refuse)
    assert time.monotonic() - begun < 30


def test_daemon_left_behind_does_not_block_us(tmp_path):
    begun = time.monotonic()
    pid = int(run.run(["sh", "-c", "sleep 300 & echo $!"]).stdout)
    assert time.monotonic() - begun < 30
    os.kill(pid, signal.SIGKILL)


def test_output_is_limited(monkeypatch):
    monkeypatch.setattr(run, "MAX_OUTPUT", 1 << 20)
    with pytest.raises(CommandFailed, match="wrote more than"):
        run.run(["head", "-c", "3M", "/dev/zero"])
    result = run.run(["sh", "-c", "head -c 1M /dev/zero >&2; echo end >&2"])
    assert len(result.stderr) == run.MAX_ERRORS
    assert result.stderr.endswith("end\n")


def test_bytes_survive():
    assert run.run(["printf", r"\377\n"]).stdout == "\udcff\n"


def test_spawn_ends_its_program():
    with run.spawn(["sleep", "100"]) as process:
        assert process.poll() is None
        pid = process.pid
    assert not alive(pid)


def test_spawn_talks():
    with run.spawn(["cat"], input_pipe=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"hello")
        process.stdin.close()
        assert process.stdout.read() == b"hello"
        assert process.wait(60) == 0


def test_wait_has_a_deadline():
    with run.spawn(["sleep", "100"]) as process, pytest.raises(Timeout):
        process.wait(0.1)


def test_command_is_logged_as_one_pasteable_line(caplog):
    with caplog.at_level("DEBUG"):
        run.run(["printf", "%s", "a b'c"])
    assert caplog.messages[0] == """printf %s 'a b'"'"'c'"""
