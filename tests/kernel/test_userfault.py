"""vm.unprivileged_userfaultfd is on for a moment, also when whoever needs it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyvz.linux import userfault

SWITCH = Path("/proc/sys/vm/unprivileged_userfaultfd")
HOLD = """
import sys, time
from pathlib import Path
from pyvz.linux import userfault
with userfault.allowed(Path(sys.argv[1])):
    print("on", flush=True)
    time.sleep(600)
"""

pytestmark = [
    pytest.mark.skipif(
        not SWITCH.exists() or not os.access(SWITCH, os.W_OK), reason="no userfaultfd"
    ),
    pytest.mark.usefixtures("userfaultfd_switch"),
]


def test_it_is_as_before_afterwards(tmp_path: Path) -> None:
    note = tmp_path / "note"
    before = SWITCH.read_text()
    with userfault.allowed(note), userfault.allowed(note):
        assert SWITCH.read_text() == "1\n"
        assert not userfault.settle(note)
        assert SWITCH.read_text() == "1\n"
    assert SWITCH.read_text() == before
    assert not note.exists()


def test_whoever_comes_after_one_that_was_killed_puts_it_back(tmp_path: Path) -> None:
    note = tmp_path / "note"
    before = SWITCH.read_text()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, note], stdout=subprocess.PIPE, env=os.environ
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"on\n"
        holder.send_signal(signal.SIGKILL)
    assert SWITCH.read_text() == "1\n"
    assert userfault.settle(note)
    assert SWITCH.read_text() == before
    assert not userfault.settle(note)
