"""vzmdest: the far end of a migration or backup, started by the other node's ssh.

Connects to vzd (and starts it where it is absent), hands it our stdin and stdout, on which it
answers the other node, and waits until that has ended.
"""

from __future__ import annotations

import os
import sys

from pyvz.cli.client import connect
from pyvz.cli.program import run
from pyvz.errors import PermissionDenied, UsageError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run vzmdest; return the exit code."""
    return run("vzmdest", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Connect, hand over, wait."""
    if argv == ["--version"]:
        sys.stdout.write(f"vzmdest version {VERSION}\n")
        return 0
    if argv not in ([], ["backup"]):
        raise UsageError("vzmdest is started by another node: vzmigrate, prlctl backup --storage")
    if os.geteuid() != 0:
        raise PermissionDenied("Only root can take over containers")
    with connect() as connection:
        method = "Backup.Serve" if argv else "Migration.Receive"
        (ended,) = connection.call_fds(method, 0, 1, reading=0, writing=1).fds
        _let_go()
        while os.read(ended, 1):
            pass
    return 0


def _let_go() -> None:
    """Leave sshd's ends to vzd, so that they close when it closes them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
