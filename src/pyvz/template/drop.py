"""Package files of the node, put into a container for the length of their installation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyvz.errors import TemplateError
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.task import Progress

MAX_PACKAGE = 2 << 30  # bytes


@contextlib.contextmanager
def dropped(
    root: GuestRoot, directory: str, files: Sequence[Path], progress: Progress
) -> Iterator[list[str]]:
    """Copy FILES into DIRECTORY of the container and remove them at the end.

    Yields the paths as the container sees them.  Raises TemplateError for a file that is absurdly
    large, OSError when the container's disk is full.
    """
    root.mkdir(directory, parents=True)
    names: list[str] = []
    total = sum(path.stat().st_size for path in files)
    progress.stage("Copying packages into the container")
    done = 0
    try:
        for path in files:
            size = path.stat().st_size
            if size > MAX_PACKAGE:
                raise TemplateError(f"{path} is larger than {MAX_PACKAGE >> 30} GiB")
            name = f"{directory}/{path.name}"
            names.append(name)
            root.write(name, path.read_bytes())
            done += size
            progress.advance(done, total)
        yield [f"/{name}" for name in names]
    finally:
        for name in names:
            root.remove(name)
