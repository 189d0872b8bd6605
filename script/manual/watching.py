"""vzubc(8) and vzstat(8)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from manual import roff
from pyvz.cli import vzstat, vzubc
from pyvz.cli.arguments import option_names

if TYPE_CHECKING:
    from pyvz.cli.arguments import OptionRow


def vzubc_page(date: str) -> str:
    """Return vzubc(8)."""
    return (
        roff.heading("vzubc", "8", "user beancounters of containers", date)
        + roff.chapter("SYNOPSIS", ".B vzubc\n[\n.I options\n]\n[\n.I CTID|NAME\n\\&...]\n")
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                """vzubc prints what containers hold of each resource in the form of
                /proc/user_beancounters of OpenVZ: held, the most so far (maxheld), barrier, limit,
                and how often more was refused (failcnt). The figures come from the control groups;
                what nobody counts any more is left out.

                Pages are of 4096 bytes; kmemsize, the socket buffers and dcachesize are bytes. The
                kernel counts the buffers of sockets as one: half of it is shown as tcpsndbuf, half
                as tcprcvbuf. A failcnt of physpages counts every time that the limit was reached,
                also when page cache was then given back and nobody noticed."""
            ),
        )
        + roff.chapter("OPTIONS", _options(vzubc.OPTIONS))
        + roff.chapter("EXIT STATUS", roff.tagged((("0", "Success."), ("1", "Any error."))))
        + roff.chapter("EXAMPLES", roff.example(("vzubc", "vzubc -q", "vzubc web")))
        + roff.chapter("SEE ALSO", ".BR vzlist (8),\n.BR vzstat (8),\n.BR prlctl (8)\n")
    )


def vzstat_page(date: str) -> str:
    """Return vzstat(8)."""
    return (
        roff.heading("vzstat", "8", "node and containers at work", date)
        + roff.chapter("SYNOPSIS", ".B vzstat\n[\n.I options\n]\n[\n.I CTID|NAME\n\\&...]\n")
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                """vzstat shows the node's CPU and memory and a line for each container, anew every
                few seconds: CPU use in percent of one CPU and its limit, memory and its limit,
                swap, processes and their limit, bytes read from and written to disks in a
                second, and how often a limit was hit (FCNT). ST is OK (running), PA (paused),
                SU (suspended), MN (mounted) or DN (stopped).

                q ends it; c, m, w, p, r, t, f and n sort by CPU, memory, swap, processes,
                reading, writing, FCNT and name. Where stdout is no terminal, or with -t, it
                prints one table and ends."""
            ),
        )
        + roff.chapter("OPTIONS", _options(vzstat.OPTIONS))
        + roff.chapter("EXIT STATUS", roff.tagged((("0", "Success."), ("1", "Any error."))))
        + roff.chapter("EXAMPLES", roff.example(("vzstat", "vzstat -t -s mem", "vzstat -d 1 web")))
        + roff.chapter("SEE ALSO", ".BR vzlist (8),\n.BR vzubc (8),\n.BR prlctl (8)\n")
    )


def _options(table: Iterable[OptionRow]) -> str:
    rows = []
    for row in table:
        value = f" {row[1]}" if row[1] else ""
        rows.append((", ".join(option_names(row)) + value, row[2][:1].upper() + row[2][1:] + "."))
    return roff.tagged(rows)
