"""What the rows of `table` mean: a procedure with its number, right, and the types of both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final, NamedTuple

from pyvz.gateway.frame import QEMU, REMOTE
from pyvz.gateway.table import QEMU_ROWS, ROWS
from pyvz.gateway.xdr import Codec, structure

OPENING: Final = "o"
READ: Final = "r"
WRITE: Final = "w"
EVENT: Final = "e"


class Procedure(NamedTuple):
    """One procedure.  arguments of an event are its message; results: None for an event."""

    number: int
    name: str
    right: str
    arguments: Codec
    results: Codec | None


@cache
def by_number(program: int = REMOTE) -> Mapping[int, Procedure]:
    """Return every procedure of a program by its number."""
    rows = {REMOTE: ROWS, QEMU: QEMU_ROWS}[program]
    return {procedure.number: procedure for procedure in _parsed(rows)}


@cache
def by_name() -> Mapping[str, Procedure]:
    """Return every procedure of all programs by its name."""
    return {procedure.name: procedure for procedure in _parsed(ROWS + QEMU_ROWS)}


def _parsed(text: str) -> Iterator[Procedure]:
    rows: list[str] = []
    for line in text.splitlines():
        if line.startswith("      "):
            rows[-1] += " " + line.strip()
        elif not line.startswith("#"):
            rows.append(line)
    for row in rows:
        head, arrow, results = row.partition("->")
        number, right, name, *fields = head.split()
        answer = structure(results.strip()) if arrow else None
        yield Procedure(int(number), name, right, structure(" ".join(fields)), answer)
