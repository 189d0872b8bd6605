"""Lowering a memory limit below what is in use, without ever killing for it.

What is above the new limit is reclaimed in steps, within a deadline; what cannot be given back is
a refusal with the figures, and the old limit stays.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from pyvz.errors import NotEnoughResources
from pyvz.linux import cgroupfs
from pyvz.units import MIB

TIMEOUT = 15.0  # seconds
_STEP = 64 * MIB
_PAUSE = 0.05


def v1(
    name: str,
    path: str,
    limit: int,
    write: Callable[[int], None],
    timeout: float = TIMEOUT,
) -> None:
    """Bring the use of the v1 group PATH down to LIMIT by limits in between (`write`).

    The kernel reclaims inside the write and refuses (EBUSY) what it cannot do.  The caller puts
    the old limit back when this raises NotEnoughResources.
    """
    file = f"{path}/memory.usage_in_bytes"
    began = used = cgroupfs.read_int(file) or 0
    deadline = time.monotonic() + timeout
    while used > limit:
        try:
            write(max(limit, used - _STEP))
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EINTR):
                raise
            # Dirty pages have to be written first: that may be all it waits for.
            if not _waits_for_disk(path):
                raise _refusal(name, limit, began, cgroupfs.read_int(file)) from error
            time.sleep(_PAUSE)
        used = cgroupfs.read_int(file) or 0
        if used > limit and time.monotonic() > deadline:
            raise _refusal(name, limit, began, used, timeout)


def v2(name: str, path: str, limit: int, timeout: float = TIMEOUT) -> str | None:
    """Bring the use of the v2 group PATH down to LIMIT; return what memory.high was before.

    memory.high holds it there until the caller has written memory.max, and must then be put back.
    None: nothing had to be done.
    """
    file = f"{path}/memory.current"
    if (cgroupfs.read_int(file) or 0) <= limit:
        return None
    high = cgroupfs.read(f"{path}/memory.high") or "max"
    try:
        # Without this it could grow as fast as we take, and memory.max would then kill.
        cgroupfs.write_if_there(f"{path}/memory.high", str(limit))
        _drain_v2(name, path, limit, timeout)
    except BaseException:
        cgroupfs.write_if_there(f"{path}/memory.high", high)
        raise
    return high


def _drain_v2(name: str, path: str, limit: int, timeout: float) -> None:
    file = f"{path}/memory.current"
    began = cgroupfs.read_int(file) or 0
    deadline = time.monotonic() + timeout
    while (used := cgroupfs.read_int(file) or 0) > limit:
        if not _reclaim_v2(path, min(used - limit, _STEP)) and not _waits_for_disk(path):
            raise _refusal(name, limit, began, cgroupfs.read_int(file))
        if time.monotonic() > deadline:
            raise _refusal(name, limit, began, used, timeout)


def _reclaim_v2(path: str, amount: int) -> bool:
    """Reclaim once; whether anything came of it."""
    before = cgroupfs.read_int(f"{path}/memory.current") or 0
    try:
        cgroupfs.write(f"{path}/memory.reclaim", str(amount))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.ENOENT, errno.EINTR):
            raise
        time.sleep(_PAUSE)
    return (cgroupfs.read_int(f"{path}/memory.current") or 0) < before


def _waits_for_disk(path: str) -> bool:
    """Whether there is page cache that must be written before it can be taken."""
    stat = cgroupfs.read_keyed(f"{path}/memory.stat")
    keys = ("total_dirty", "total_writeback", "file_dirty", "file_writeback")
    return sum(stat.get(key, 0) for key in keys) >= MIB


def _refusal(
    name: str, limit: int, began: int, used: int | None, timeout: float | None = None
) -> NotEnoughResources:
    within = "" if timeout is None else f" within {timeout:.0f} seconds"
    left = used or began
    return NotEnoughResources(
        f"{name} uses {_mib(began)} and could give back only down to {_mib(left)}{within}, "
        f"which is more than the new limit of {_mib(limit)}",
        hint="Nothing was changed.  Stop processes inside, or choose a higher limit.",
    )


def _mib(size: int) -> str:
    return f"{-(-size // MIB)} MiB"
