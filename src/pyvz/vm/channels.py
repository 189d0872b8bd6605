"""The ways into a guest that QEMU knows of."""

from __future__ import annotations

from contextlib import suppress

from pyvz.errors import VZError
from pyvz.vm.monitor import Monitor


def has_agent(monitor: Monitor) -> bool:
    """Whether a guest agent has the port open; asked of QEMU, so nothing is waited for."""
    with suppress(VZError):
        for device in monitor.execute("query-chardev"):
            if device["label"] == "agent":
                return bool(device["frontend-open"])
    return False
