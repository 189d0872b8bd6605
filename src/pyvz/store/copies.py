"""copy.json: a disk of a machine that is being copied for a client (machineblockcopy.py).

    {"disk": "hdd0", "made": "/path"}

It lies in the directory of a machine's backup below <run>: whoever finds that of a killed one knows
by it what has to be taken away.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.linux import file

NAME: Final = "copy.json"
_LIMIT: Final = 1 << 20


class Copying(NamedTuple):
    """A disk that is being copied.  made: the image that is of no use half written, "": none."""

    disk: str
    made: str = ""

    def remove(self) -> None:
        """Take the image away; idempotent."""
        if self.made:
            with suppress(OSError):
                Path(self.made).unlink()


def save(directory: Path, copying: Copying) -> None:
    """Write it."""
    file.write_atomic(directory / NAME, json.dumps(copying._asdict()) + "\n", 0o600)


def load(directory: Path) -> Copying | None:
    """Return it, None where there is none, or only half of one."""
    try:
        data = json.loads(file.read_text_limited(directory / NAME, _LIMIT))
        return Copying(str(data["disk"]), str(data["made"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
