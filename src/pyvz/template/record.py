"""What a container's home remembers of its templates.

    <home>/templates/<template>/timestamp    when it was installed or updated
    <home>/templates/vzpackages              one line per package: name, architecture, version
Source: vztt src/util.c (save_vzpackages), src/template.c (ve_tmpl_get_timestamp).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from pyvz.linux.file import remove_tree, write_atomic
from pyvz.template.base import Package
from pyvz.template.metadata import check_name

TIME_FORMAT = "%Y-%m-%dT%H:%M:%S"


def folder(home: Path) -> Path:
    """Return the folder of records in a container's home."""
    return home / "templates"


def note(home: Path, template: str) -> None:
    """Note that TEMPLATE was installed or updated at this moment."""
    place = folder(home) / check_name(template)
    place.mkdir(parents=True, exist_ok=True)
    write_atomic(place / "timestamp", time.strftime(TIME_FORMAT) + "\n")


def forget(home: Path, template: str) -> None:
    """Drop the record of TEMPLATE.  Idempotent."""
    remove_tree(folder(home) / check_name(template))


def timestamp(home: Path, template: str) -> str:
    """Return when TEMPLATE was installed or updated, "" when that is not known."""
    try:
        text = (folder(home) / check_name(template) / "timestamp").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return text.strip()[:64]


def save_packages(home: Path, packages: Sequence[Package]) -> None:
    """Write the list of installed packages."""
    folder(home).mkdir(parents=True, exist_ok=True)
    lines = (f" {p.name:<22} {p.arch:<9} {p.version}\n" for p in packages)
    write_atomic(folder(home) / "vzpackages", "".join(lines))
