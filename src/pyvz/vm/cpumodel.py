"""The models of processors that QEMU on this node knows."""

from __future__ import annotations

import re

from pyvz.vm import helptext

_LINE = re.compile(r"^x86 (\S+)", re.MULTILINE)
_NOT_NAMED = frozenset({"base", "host", "max"})  # what is taken when no model is named


def known() -> tuple[str, ...]:
    """Return the names, none without QEMU."""
    return tuple(name for name in _LINE.findall(helptext.of("-cpu")) if name not in _NOT_NAMED)
