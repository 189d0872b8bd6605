"""prl_disk_tool: what its commands ask and say alike, of a container's disks and of images of
virtual machines.
"""

from __future__ import annotations

import sys

from pyvz.cli.ploop_size import SECTOR, parse_size
from pyvz.errors import Unsupported, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvz.cli.arguments import Arguments


def size_wanted(args: Arguments) -> int:
    """Return --size in bytes, a whole number of MiB; raises UsageError."""
    text = args.value("size")
    if text is None:
        raise UsageError("Target size not found", details="A size is not specified (--size).")
    return parse_size(text, "M") >> 20 << 20


def unit_wanted(args: Arguments) -> tuple[str, int]:
    """Return the letter of --units and its bytes; raises UsageError."""
    unit = args.value("units") or "M"
    if unit not in ("K", "M", "G", "T"):
        raise UsageError("Cannot parse units", details=f"{unit} is none of K, M, G, T.")
    return unit, parse_size("1" + unit)


def check_form(args: Arguments) -> None:
    """Raise UsageError, Unsupported unless one form is asked for that there is."""
    if args.has("split"):
        raise Unsupported("A disk in several parts is not supported")
    if args.has("plain") == args.has("expanding"):
        raise UsageError("Either --plain or --expanding must be specified")


def tell_sizes(size: str, minimum: str) -> None:
    """Print what resize --info shows, of sizes with their unit."""
    tabs = "\t" * 6
    sys.stdout.write(
        f"Disk information:\n\tSize:{tabs}{size}\n\tMinimum:{tabs[1:]}{minimum}\n"
        f"\tMinimum without resizing the last partition:\t{size}\n"
    )


def tell_blocks(block: int, size: int, allocated: int, used: int) -> None:
    """Print what compact --info shows; all in bytes."""
    for title, number in (
        ("Block size:       ", block // SECTOR),
        ("Total blocks:     ", size // block),
        ("Allocated blocks: ", -(-allocated // block)),
        ("Used blocks:      ", -(-used // block)),
    ):
        sys.stdout.write(f"        {title}{number}\n")
