"""The models of processors that QEMU on this node knows, and the features that they may have."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pyvz.vm import helptext
from pyvz.vm.monitor import Monitor

_LINE = re.compile(r"^x86 (\S+)", re.MULTILINE)
_NOT_NAMED = frozenset({"base", "host", "max"})  # what is taken when no model is named
_FLAGS = "Recognized CPUID flags:"


def known() -> tuple[str, ...]:
    """Return the names, none without QEMU."""
    return tuple(name for name in _LINE.findall(helptext.of("-cpu")) if name not in _NOT_NAMED)


def features() -> frozenset[str]:
    """Return the features that can be turned on and off, none without QEMU."""
    return frozenset(helptext.of("-cpu").partition(_FLAGS)[2].split())


def missing(monitor: Monitor, names: Iterable[str]) -> list[str]:
    """Return which of these features the processor of a machine does not have after all.

    QEMU leaves out, with a warning, what the node (or emulation) cannot do.
    """
    path = monitor.execute("query-cpus-fast")[0]["qom-path"]
    return [
        name for name in names
        if not monitor.execute("qom-get", {"path": path, "property": name})
    ]  # fmt: skip
