"""User beancounters, as /proc/user_beancounters of OpenVZ showed them."""

from __future__ import annotations

from typing import NamedTuple

# In the order of the original.
NAMES = (
    "kmemsize", "lockedpages", "privvmpages", "shmpages", "numproc", "physpages", "vmguarpages",
    "oomguarpages", "numtcpsock", "numflock", "numpty", "numsiginfo", "tcpsndbuf", "tcprcvbuf",
    "othersockbuf", "dgramrcvbuf", "numothersock", "dcachesize", "numfile", "numiptent",
    "swappages",
)  # fmt: skip


class Held(NamedTuple):
    """What is used; None: nothing counts it.

    most: at most so far.  limit: what the kernel enforces.  failures: requests that were refused,
    or had to wait until memory was taken from somewhere else.
    """

    now: int | None = None
    most: int | None = None
    limit: int | None = None
    failures: int | None = None


class Beancounter(NamedTuple):
    """One line of the file."""

    name: str
    held: int | None
    maxheld: int | None
    barrier: int
    limit: int
    failcnt: int | None
