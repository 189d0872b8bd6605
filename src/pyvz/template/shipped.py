"""The metadata that pyvz ships, and their way into the template area.

A manifest (<lib>/template-manifest: `sha256sum` lines) remembers what we wrote.  A file that still
has the content we wrote is ours and follows a newer version; a changed one is the administrator's,
and so is the decision to remove one.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pyvz.errors import TemplateError
from pyvz.linux.file import flock, write_atomic
from pyvz.template.metadata import os_templates

MANIFEST = "template-manifest"
LOCK_TIMEOUT = 30.0


def source() -> Path:
    """Return the folder of shipped metadata: of the source tree, else of the installation."""
    places = [
        Path(__file__).resolve().parents[3] / "templates",
        Path(sys.prefix) / "share/pyvz/templates",
        Path("/usr/share/pyvz/templates"),
    ]
    for place in places:
        if place.is_dir():
            return place
    raise TemplateError(
        "the templates that come with pyvz are not installed",
        details="\n".join(map(str, places)),
    )


def install(shipped: Path, area: Path, lib: Path) -> list[str]:
    """Bring AREA up to date with SHIPPED; return the names of the files that were written."""
    wanted = {name: (shipped / name).read_bytes() for name in _files(shipped)}
    lib.mkdir(parents=True, exist_ok=True)
    area.mkdir(parents=True, exist_ok=True)
    with flock(lib / f"{MANIFEST}.lock", timeout=LOCK_TIMEOUT):
        # An area without any template is a new one, whatever was written to another.
        known = _read_manifest(lib / MANIFEST) if os_templates(area) else {}
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in wanted.items()}
        written = [
            name
            for name, digest in digests.items()
            if _is_due(area / name, known.get(name), digest)
        ]
        for name in written:
            (area / name).parent.mkdir(parents=True, exist_ok=True)
            mode = 0o755 if os.access(shipped / name, os.X_OK) else 0o644
            write_atomic(area / name, wanted[name], mode)
        if digests != known:
            text = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
            write_atomic(lib / MANIFEST, text, 0o644)
    return written


def _is_due(path: Path, recorded: str | None, digest: str) -> bool:
    """Whether our version of a file goes to PATH; RECORDED is what we wrote there before."""
    try:
        present = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return recorded is None  # else it was there, and somebody removed it
    return present != digest and present == recorded


def _read_manifest(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.split("  ", 1) for line in lines if "  " in line)
    return {name: digest for digest, name in pairs}


def _files(folder: Path) -> Iterator[str]:
    for directory, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield os.path.relpath(os.path.join(directory, name), folder)
