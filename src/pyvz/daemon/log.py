"""The daemon's log: <log>/vzd.log, one line per operation, and lines for debugging.

    2026-11-23T14:40:00.123Z INFO operation id=17 verb=start ve=ct1 origin=prlctl uid=0 pid=812 \
result=ok seconds=0.062

Values with spaces or control characters are quoted as JSON, so that a name cannot forge a line.
The file is opened anew when it was renamed (log rotation).  Passwords are `Secret` values and
options are never written here, so none can get in.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LOG_NAME = "vzd.log"
_PLAIN = re.compile(r"[^\s\"'=\x00-\x1f\x7f]+")
_operations = logging.getLogger("pyvz.operation")


class _Formatter(logging.Formatter):
    """UTC times in ISO 8601 with milliseconds."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class _File(logging.handlers.WatchedFileHandler):
    """A log file that only root and its group may read."""

    def _open(self) -> logging.handlers.TextIOWrapper:  # type: ignore[name-defined]
        stream = super()._open()
        os.fchmod(stream.fileno(), 0o640)
        return stream


def configure(folder: Path, *, stderr: bool, debug: bool) -> None:
    """Send the messages of pyvz to FOLDER/vzd.log, and to stderr."""
    logging.raiseExceptions = False  # a full disk must not end the daemon
    formatter = _Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handlers: list[logging.Handler] = [
        _File(folder / LOG_NAME, encoding="utf-8", errors="backslashreplace")
    ]
    if stderr:
        handlers.append(logging.StreamHandler())
    root = logging.getLogger()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("asyncvarlink").setLevel(logging.ERROR)  # it warns of clients that left
    logging.getLogger("pyvz").setLevel(logging.DEBUG if debug else logging.INFO)


def reopen() -> None:
    """Open the file anew (SIGHUP); it happens by itself when the file was renamed."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _File):
            handler.acquire()
            try:
                handler.reopenIfNeeded()
            finally:
                handler.release()


def fields(**values: object) -> str:
    """Return `name=value` pairs, quoted where needed; None is left out."""
    return " ".join(f"{name}={_text(value)}" for name, value in values.items() if value is not None)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def operation(**values: object) -> None:
    """Write the one line about an operation that has ended (see the head of this module)."""
    failed = values.get("result") != "ok"
    _operations.log(logging.WARNING if failed else logging.INFO, "%s", fields(**values))
