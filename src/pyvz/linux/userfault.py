"""userfaultfd(2) for processes in a user namespace: vm.unprivileged_userfaultfd.

The kernel asks for CAP_SYS_PTRACE in the first user namespace, which nobody inside another one has.
CRIU opens the descriptors inside, so the switch is on as long as it does that, and no longer.  What
it was is noted in a file before, so that whoever comes after one that was killed can put it back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pyvz.linux import file

_SWITCH: Final = Path("/proc/sys/vm/unprivileged_userfaultfd")
_lock = threading.Lock()
_users: list[object] = []


@contextmanager
def allowed(note: Path) -> Iterator[None]:
    """Let processes in user namespaces open userfaultfds for the block; raises OSError.

    note: a file on a file system that does not outlive the machine's boot; the same for all users.
    """
    me = object()
    with _lock:
        if not _users:
            _put_back(note)
            file.write_atomic(note, _SWITCH.read_text(), 0o600)
            _SWITCH.write_text("1")
        _users.append(me)
    try:
        yield
    finally:
        with _lock:
            _users.remove(me)
            if not _users:
                _put_back(note)


def settle(note: Path) -> bool:
    """Put the switch back that one that was killed has left on; whether it had.  Raises OSError."""
    with _lock:
        return False if _users else _put_back(note)


def _put_back(note: Path) -> bool:
    try:
        before = note.read_text()
    except FileNotFoundError:
        return False
    _SWITCH.write_text("1" if before.strip() == "1" else "0")
    note.unlink()
    return True
