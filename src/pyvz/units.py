"""Sizes and counts as OpenVZ writes them.

Suffixes are one letter, any case, 1024-based: B K M G T, and P for pages of 4096 bytes.
"unlimited" is LONG_MAX, as the original stores it.  Source: vzctl(8), libvzctl.
"""

from __future__ import annotations

import re

from pyvz.errors import BadValue

PAGE_SIZE = 4096
UNLIMITED = 9223372036854775807  # LONG_MAX

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_SUFFIX = {"B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB, "P": PAGE_SIZE}
_SIZE = re.compile(r"(\d+)(?:\.(\d+))?([BKMGTP]?)", re.IGNORECASE)


def parse_size(text: str, *, default_unit: int, pages: bool = False) -> int:
    """Return the bytes that TEXT stands for; a bare number counts in `default_unit` bytes.

    pages: whether the suffix P (4096-byte pages) is allowed.  "unlimited" gives UNLIMITED.
    Fractions (2.2G, written by OpenVZ 6) are rounded up to a whole byte.
    Raises BadValue for anything else.
    """
    text = text.strip()
    if text.lower() == "unlimited":
        return UNLIMITED
    match = _SIZE.fullmatch(text)
    suffix = match.group(3).upper() if match else ""
    if match is None or (suffix == "P" and not pages):
        raise BadValue(f"'{text}' is not a size (a number with one of the suffixes B K M G T)")
    unit = _SUFFIX[suffix] if suffix else default_unit
    whole = int(match.group(1)) * unit
    if match.group(2):
        whole += -(-int(match.group(2)) * unit // 10 ** len(match.group(2)))
    return min(whole, UNLIMITED)


def bytes_to_pages(size: int) -> int:
    """Return SIZE bytes as whole 4096-byte pages, rounded up; UNLIMITED stays UNLIMITED."""
    return UNLIMITED if size >= UNLIMITED else -(-size // PAGE_SIZE)


def pages_to_bytes(pages: int) -> int:
    """Return the bytes of PAGES 4096-byte pages; anything past LONG_MAX is UNLIMITED."""
    return UNLIMITED if pages >= UNLIMITED // PAGE_SIZE else pages * PAGE_SIZE
