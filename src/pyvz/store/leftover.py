"""Temporary files that a killed process left beside the files it was about to replace."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path

from pyvz.store.paths import Paths

log = logging.getLogger(__name__)

_AGE = 60.0  # seconds; a write takes milliseconds
# What linux.file.write_atomic and the links of store/ are called before they get their name.
_TEMPORARY = re.compile(r"\.(?:.+\.[0-9a-f]{12}|\d+\.\d+\.tmp)")


def sweep(paths: Paths) -> list[Path]:
    """Remove leftover temporaries of this node's own directories (for recovery); return them."""
    directories = (
        paths.etc,
        paths.conf,
        paths.names,
        paths.lib / "idrange",
        paths.lib / "journal",
        paths.run / "state",
    )
    return [path for directory in directories for path in sweep_directory(directory)]


def sweep_directory(directory: Path, *, age: float = _AGE) -> list[Path]:
    """Remove temporaries of DIRECTORY that are older than AGE seconds; return them."""
    removed: list[Path] = []
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    except FileNotFoundError:
        return removed
    for name in names:
        path = directory / name
        try:
            if time.time() - path.lstat().st_mtime > age:
                path.unlink()
                removed.append(path)
        except (FileNotFoundError, IsADirectoryError):
            continue
    if removed:
        log.info("removed %d leftover temporary files from %s", len(removed), directory)
    return removed
