"""pull.json: what of a machine's disks a client may read just now, and where (machinepull.py).

    {"server": {"path": "/run/x.sock"}  or  {"host": "127.0.0.1", "port": 10809},
     "exports": [{"disk": "hdd0", "name": "sda", "since": "monday", "bitmap": "backup-sda",
                  "scratch": "/scratch", "reuse": false}, ...]}

It lies in the directory of the backup below <run>: whoever finds that of a killed one knows by it
what has to be taken away.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.linux import file

NAME: Final = "pull.json"
_LIMIT: Final = 1 << 20


class Export(NamedTuple):
    """A disk that is exported.  since: the checkpoint since which bitmap tells what was written.

    name: of the export; scratch: the image for what is overwritten meanwhile, "": one of ours;
    reuse: that image is there already, and stays.
    """

    disk: str
    name: str
    since: str = ""
    bitmap: str = ""
    scratch: str = ""
    reuse: bool = False


class Server(NamedTuple):
    """Where it is served: the path of a Unix socket, or else an address; port 0: a free one."""

    path: str = ""
    host: str = ""
    port: int = 0

    def remove(self) -> None:
        """Take the socket's name away; idempotent."""
        if self.path:
            with suppress(OSError):
                Path(self.path).unlink()


class Pull(NamedTuple):
    """A backup in pull mode."""

    server: Server
    exports: tuple[Export, ...]


def save(directory: Path, pull: Pull) -> None:
    """Write it."""
    rows = [each._asdict() for each in pull.exports]
    data = {"server": pull.server._asdict(), "exports": rows}
    file.write_atomic(directory / NAME, json.dumps(data) + "\n", 0o600)


def load(directory: Path) -> Pull | None:
    """Return it, None where there is none, or only half of one."""
    try:
        data = json.loads(file.read_text_limited(directory / NAME, _LIMIT))
        exports = tuple(Export(**row) for row in data["exports"])
        return Pull(Server(**data["server"]), exports)
    except (OSError, ValueError, KeyError, TypeError):
        return None
