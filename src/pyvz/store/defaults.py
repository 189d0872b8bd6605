"""The files that a new node begins with: vz.conf, samples, traffic classes (package data)."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from pyvz.linux.file import write_atomic
from pyvz.store.paths import Paths


def seed(paths: Paths) -> list[Path]:
    """Write the default files that are missing below <root>/etc; return those that were written.

    A file that is there is never touched, so this may run at every start of the node.
    """
    return _copy(files("pyvz") / "data" / "etc", paths.root / "etc")


def _copy(source: Traversable, target: Path) -> list[Path]:
    written: list[Path] = []
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    for item in sorted(source.iterdir(), key=lambda entry: entry.name):
        place = target / item.name
        if item.is_dir():
            written += _copy(item, place)
        elif not place.exists():
            write_atomic(place, item.read_bytes(), 0o644)
            written.append(place)
    return written
