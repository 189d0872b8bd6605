"""What a guest says, made to fit: numbers have a limit, texts are cut, lists are short.

The answers of its agent are JSON of a hostile program (vm/agent.py): nothing in them need be what
it should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MOST: Final = 256  # rows of a list
LONGEST: Final = 1024  # characters of a text


def text(value: object, *, longest: int = LONGEST) -> str:
    """Return a guest's text as one that can be passed on."""
    clean = "".join(char if char.isprintable() else " " for char in str(value)[:longest])
    return clean.encode("utf-8", "replace").decode()


def rows(value: object, *, most: int = MOST) -> list[Mapping[str, Any]]:
    """Return a guest's list of objects."""
    found = value if isinstance(value, list) else []
    return [each for each in found[:most] if isinstance(each, dict)]


def number(value: object, *, most: int = (1 << 63) - 1) -> int:
    """Return a guest's number, 0 for what is none."""
    fine = isinstance(value, int) and 0 <= value <= most
    return int(value) if fine else 0  # type: ignore[call-overload]
