"""userfaultfd(2) for processes in a user namespace: vm.unprivileged_userfaultfd.

The kernel asks for CAP_SYS_PTRACE in the first user namespace, which nobody inside another one has.
CRIU opens the descriptors inside, so the switch is on as long as it does that, and no longer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_SWITCH: Final = Path("/proc/sys/vm/unprivileged_userfaultfd")
_lock = threading.Lock()
_users: list[object] = []
_before: list[str] = []


@contextmanager
def allowed() -> Iterator[None]:
    """Let processes in user namespaces open userfaultfds for the block; raises OSError."""
    me = object()
    with _lock:
        if not _users:
            _before[:] = [_SWITCH.read_text()]
            _SWITCH.write_text("1")
        _users.append(me)
    try:
        yield
    finally:
        with _lock:
            _users.remove(me)
            if not _users:
                _SWITCH.write_text(_before[0])
