"""Which program a keeper runs: it outlives vzd, so after an upgrade it may be an older one.

    <state>/program     checksum of the sources that the keeper has loaded, written when it starts

vzd compares it with its own and has an older keeper execute the new program in place (handover.py).
Imported by the keeper: nothing heavy here.
"""

from __future__ import annotations

import os
import zlib

_PACKAGES = ("container", "linux")  # what the keeper and its children load


def identity() -> str:
    """Return a checksum of the sources of the keeper as they lie on the disk now."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    value = 0
    for package in _PACKAGES:
        directory = f"{here}/{package}"
        for name in sorted(os.listdir(directory)):
            if name.endswith(".py"):
                with open(f"{directory}/{name}", "rb") as file:
                    value = zlib.crc32(file.read(), zlib.crc32(name.encode(), value))
    return f"{value:08x}"


def note(state: str) -> None:
    """Write down, in the keeper's state directory, what it runs."""
    os.makedirs(state, 0o700, exist_ok=True)
    with open(f"{state}/program.new", "w", encoding="ascii") as file:
        file.write(identity())
    os.replace(f"{state}/program.new", f"{state}/program")


def noted(state: str) -> str:
    """Return what was written down, "" where nothing was (a keeper from before this)."""
    try:
        with open(f"{state}/program", encoding="ascii") as file:
            return file.read(64)
    except (OSError, UnicodeDecodeError):
        return ""
