"""The ways into a guest that QEMU knows of."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from pyvz.errors import VZError
from pyvz.vm.monitor import Monitor

AGENT: Final = "agent"


def has_agent(monitor: Monitor) -> bool:
    """Whether a guest agent has the port open; asked of QEMU, so nothing is waited for."""
    with suppress(VZError):
        return opened(monitor).get(AGENT, False)
    return False


def opened(monitor: Monitor) -> dict[str, bool]:
    """Return whether somebody inside has each way open, by the names of their sockets."""
    told = monitor.execute("query-chardev")
    return {str(each["label"]): bool(each["frontend-open"]) for each in told}


def is_free(monitor: Monitor, name: str) -> bool:
    """Whether nobody of this node is connected to a way; there is room for one at a time."""
    told = monitor.execute("query-chardev")
    row = next((each for each in told if each["label"] == name), None)
    return row is not None and str(row["filename"]).startswith("disconnected:")
