"""The package database of a cache, without unpacking the rest."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

from pyvz.linux import run
from pyvz.linux.archive import compression_of
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.task import Progress
from pyvz.template.cache import CacheFile
from pyvz.template.rpmdb import DATABASES

MEMBERS = ("var/lib/dpkg/status", "var/lib/apt/extended_states", *DATABASES)
TIMEOUT = 600.0


@contextlib.contextmanager
def package_data(cache: CacheFile, progress: Progress) -> Iterator[GuestRoot]:
    """Have the package manager's files of a cache below a temporary folder."""
    progress.stage(f"Reading {cache.path.name}")
    program = compression_of(cache.path).expand[0]
    with tempfile.TemporaryDirectory(prefix="pyvz-cache-") as folder:
        argv = ["tar", "--extract", f"--use-compress-program={program}", "--no-same-owner"]
        argv += ["--file", str(cache.path), "--directory", folder, "--"]
        argv += [f"./{name}" for name in MEMBERS]
        # tar ends with 2 for the members that this distribution does not have.
        run.run(argv, timeout=TIMEOUT, poll=progress.check, check=False)
        with GuestRoot.open(folder) as root:
            yield root
