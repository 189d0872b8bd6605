"""The node's pools of huge pages, by the size of a page in KiB.

    /sys/kernel/mm/hugepages/hugepages-<KiB>kB/{nr,free}_hugepages
Source: kernel, Documentation/admin-guide/mm/hugetlbpage.rst.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_POOLS: Final = Path("/sys/kernel/mm/hugepages")
_NAME: Final = re.compile(r"hugepages-(\d+)kB")


def sizes() -> tuple[int, ...]:
    """Return the sizes of pages that there are pools of, in KiB; none where the kernel has none."""
    if not _POOLS.is_dir():
        return ()
    found = (_NAME.fullmatch(each.name) for each in _POOLS.iterdir())
    return tuple(sorted(int(each[1]) for each in found if each))


def free(size: int) -> int:
    """Return how many pages of a pool nobody has."""
    return _read(size, "free_hugepages")


def total(size: int) -> int:
    """Return how many pages a pool has."""
    return _read(size, "nr_hugepages")


def resize(size: int, count: int) -> int:
    """Make a pool COUNT pages; returns how many it has then: the kernel takes what it can get."""
    (_POOLS / f"hugepages-{size}kB" / "nr_hugepages").write_text(str(count))
    return total(size)


def _read(size: int, name: str) -> int:
    return int((_POOLS / f"hugepages-{size}kB" / name).read_text())
