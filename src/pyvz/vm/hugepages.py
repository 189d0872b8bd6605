"""Huge pages of the node, from which a guest's memory can be taken."""

from __future__ import annotations

from pathlib import Path

from pyvz.errors import NotEnoughResources, Unsupported
from pyvz.units import MIB
from pyvz.vm.commandline import HUGE_PAGE

_POOL = Path(f"/sys/kernel/mm/hugepages/hugepages-{HUGE_PAGE >> 10}kB")


def check(memory: int) -> None:
    """Raise NotEnoughResources when MEMORY MiB cannot come from huge pages; Unsupported."""
    if memory * MIB % HUGE_PAGE:
        raise NotEnoughResources(
            f"{memory} MiB of memory are no whole number of huge pages of {HUGE_PAGE // MIB} MiB",
            hint="Change --memsize.",
        )
    try:
        free = int((_POOL / "free_hugepages").read_text()) - _reserved()
    except OSError as error:
        raise Unsupported("The kernel of this node has no huge pages of 2 MiB") from error
    wanted = memory * MIB // HUGE_PAGE
    if free < wanted:
        raise NotEnoughResources(
            f"{wanted} huge pages are needed, {max(0, free)} are free on this node",
            hint="Set more aside (sysctl vm.nr_hugepages=N), or: prlctl set ID --hugepages off",
        )


def _reserved() -> int:
    return int((_POOL / "resv_hugepages").read_text())
