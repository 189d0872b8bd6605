"""What ssh said when no connection to another node came about, and what that means for people."""

from __future__ import annotations

import os
import time
from typing import IO

from pyvz.errors import ConnectionFailed
from pyvz.migration import address as addresses
from pyvz.migration.address import Address

PATIENCE = 5.0  # seconds; the words may come a moment after the end of ssh's output
_LIMIT = 2000  # bytes


def tail(errors: IO[bytes]) -> str:
    """Return ssh's last words so far; any thread may ask, also after the file was closed."""
    try:
        size = os.fstat(errors.fileno()).st_size
        data = os.pread(errors.fileno(), _LIMIT, max(0, size - _LIMIT))
    except (OSError, ValueError):
        return ""
    return data.decode("utf-8", "replace")


def awaited(errors: IO[bytes]) -> str:
    """Return ssh's last words once it has ended, waiting a moment for them."""
    deadline = time.monotonic() + PATIENCE
    while not (words := tail(errors).strip()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return words


def not_connected(address: Address, why: str, words: str) -> ConnectionFailed:
    """Return the error that ssh's WORDS mean; why: what is said when it said nothing."""
    if "not found" in words or "No such file" in words:
        return ConnectionFailed(
            f"{address} has no {addresses.COMMAND}",
            details=words,
            hint="Is pyvz installed there, for the user that logs in?",
        )
    return ConnectionFailed(
        f"Cannot connect to {address}",
        details=words or why,
        hint=f"Try: ssh {address.host} true. It has to work without a question.",
    )
