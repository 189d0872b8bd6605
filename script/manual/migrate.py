"""vzmigrate(8)."""

from __future__ import annotations

from manual import roff
from pyvz.cli import vzmigrate
from pyvz.cli.arguments import option_names

_VZMIGRATE_CODES = (
    ("0", "Success."),
    ("1", "The command line is wrong."),
    ("2", "Any error that has no number of its own."),
    ("3", "Somebody else works on the container."),
    ("4", "The other node cannot be reached, or has no pyvz."),
    ("5", "The container's configuration is damaged, or its state does not allow it."),
    ("6", "The files could not be copied."),
    ("7, 8", "It could not be started there, stopped here."),
    ("9, 45", "The private area, or the id or name, exists on the other node."),
    ("10", "There is no such container."),
    ("11, 31", "The other node lacks memory, disk space."),
    ("12", "An address of it is in use there."),
    ("21, 22", "The connection broke; something did not happen in time."),
    ("25", "It was called off; what had been done was undone."),
    ("26", "The other node is of another version."),
    ("32, 57", "Something cannot be done at all, or not on that node."),
    ("52", "A program failed."),
    ("73", "The processes could not be frozen here, or brought back there."),
)


def vzmigrate_page(date: str) -> str:
    """Return vzmigrate(8)."""
    return (
        roff.heading("vzmigrate", "8", "move containers to another node", date)
        + roff.chapter(
            "SYNOPSIS",
            ".B vzmigrate\n[\n.I options\n]\n.RI [ USER @] NODE [: PORT ]\n"
            ".IR CT [: NEWID [: PRIVATE [: ROOT ]]]\n.RI ...\n",
        )
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                """vzmigrate moves containers to another node that runs pyvz, through one ssh
                connection, which has to be made without a question (by key). The administrator's
                ssh configuration holds. Nothing else has to be set up there, and no port be opened.

                Disks are copied while the container runs, in rounds; the last one follows when it
                stands still. Until the other node has taken over, whatever fails or is called off
                leaves the container here as it was. Afterwards it is known only there; its files
                here stay as *.migrated, or go with --remove-area yes.

                When the connection breaks in the very moment of the decision, the container can be
                started on neither side until the other node could be asked, which is tried again
                every minute and by every command."""
            ),
        )
        + roff.chapter("OPTIONS", _options())
        + roff.chapter("EXIT STATUS", roff.tagged(_VZMIGRATE_CODES))
        + roff.chapter(
            "EXAMPLES",
            roff.example(
                (
                    "vzmigrate node2 web",
                    "vzmigrate --online root@node2 web db",
                    "vzmigrate --new-name web-2 --keep-src node2 web",
                )
            ),
        )
        + roff.chapter("SEE ALSO", ".BR prlctl (8),\n.BR vzctl (8),\n.BR ssh (1)\n")
    )


def _options() -> str:
    rows = []
    for row in vzmigrate.OPTIONS:
        value = ("" if row[1].startswith("[") else " ") + row[1] if row[1] else ""
        rows.append((", ".join(option_names(row)) + value, row[2][:1].upper() + row[2][1:] + "."))
    return roff.tagged(rows)
