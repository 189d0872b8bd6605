"""Pages of the node's memory, of the processor's size and huge ones; the node is one cell."""

from __future__ import annotations

from typing import Final

from pyvz.gateway import failure, nodexml
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.linux import hugepools
from pyvz.model.task import Progress
from pyvz.units import KIB, PAGE_SIZE

SET: Final = 1  # flag: so many, not so many more
_MOST: Final = 1 << 40


def node_get_free_pages(
    _call: Call, *, pages: list[int], startCell: int, cellCount: int, flags: int
) -> Values:
    """How many pages of each size (KiB) are free."""
    _ = flags
    _check_cell(startCell, cellCount)
    return {"counts": [_free(size) for size in pages]}


def node_alloc_pages(
    _call: Call,
    _progress: Progress,
    *,
    pageSizes: list[int],
    pageCounts: list[int],
    startCell: int,
    cellCount: int,
    flags: int,
) -> Values:
    """Set huge pages aside, so many more or (flag 1) so many; those that are in use stay."""
    _check_cell(startCell, cellCount)
    if len(pageSizes) != len(pageCounts) or max(pageCounts, default=0) > _MOST:
        raise Failure(failure.INVALID_ARGUMENT, "Sizes and counts of pages do not fit together")
    for size, count in zip(pageSizes, pageCounts, strict=True):
        if size not in hugepools.sizes():
            raise Failure(failure.FAILED, f"This node has no huge pages of {size} KiB")
        wanted = count if flags & SET else count + hugepools.total(size)
        made = hugepools.resize(size, wanted)
        if made != wanted:
            raise Failure(
                failure.FAILED, f"{made} and not {wanted} pages of {size} KiB can be set aside"
            )
    return {"ret": len(pageSizes)}


def _check_cell(start: int, count: int) -> None:
    if start not in {0, -1} or count > 1:
        raise Failure(failure.FAILED, f"There is one cell, 0, and not {start}")


def _free(size: int) -> int:
    if size * KIB == PAGE_SIZE:
        return nodexml.meminfo()["MemFree"] // PAGE_SIZE
    if size not in hugepools.sizes():
        raise Failure(failure.FAILED, f"This node has no pages of {size} KiB")
    return hugepools.free(size)
