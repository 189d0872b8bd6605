"""vzmdest: the far end of a migration or backup, started by the other node's ssh.

Connects to vzd (and starts it where it is absent), has it answer on a socket, and carries bytes
between that and our stdin and stdout until either side ends.
"""

from __future__ import annotations

import os
import select
import sys

from pyvz.cli.client import connect
from pyvz.cli.program import run
from pyvz.errors import PermissionDenied, UsageError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK = 256 << 10
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


def main(argv: Sequence[str]) -> int:
    """Run vzmdest; return the exit code."""
    return run("vzmdest", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Connect and carry."""
    if argv == ["--version"]:
        sys.stdout.write(f"vzmdest version {VERSION}\n")
        return 0
    if argv not in ([], ["backup"]):
        raise UsageError("vzmdest is started by another node: vzmigrate, prlctl backup --storage")
    if os.geteuid() != 0:
        raise PermissionDenied("Only root can take over containers")
    with connect() as connection:
        reply = connection.call_fds("Backup.Serve" if argv else "Migration.Receive")
    carry(reply.fds[0])
    return 0


def carry(stream: int) -> None:
    """Carry bytes between 0, 1 and the socket STREAM until one side has ended.

    What was read is written before more is read, so that no memory grows.
    """
    for fd in (0, 1, stream):
        os.set_blocking(fd, False)
    to = {0: stream, stream: 1}
    waiting = {0: b"", stream: b""}
    while True:
        poll = select.poll()
        wanted = {0: 0, 1: 0, stream: 0}
        for source, target in to.items():
            if waiting[source]:
                wanted[target] |= select.POLLOUT
            else:
                wanted[source] |= select.POLLIN
        for fd, events in wanted.items():
            poll.register(fd, events)
        ready = dict(poll.poll())
        if ready.get(1, 0) & _GONE:
            return
        for source, target in to.items():
            if not _step(source, target, waiting, ready):
                return


def _step(source: int, target: int, waiting: dict[int, bytes], ready: dict[int, int]) -> bool:
    """Move what can be moved one way; False at the end."""
    try:
        if waiting[source]:
            if ready.get(target, 0) & (select.POLLOUT | _GONE):
                waiting[source] = waiting[source][os.write(target, waiting[source]) :]
        elif ready.get(source, 0) & (select.POLLIN | _GONE):
            waiting[source] = os.read(source, CHUNK)
            return bool(waiting[source])
    except BlockingIOError:
        pass
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
