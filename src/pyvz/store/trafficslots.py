"""Places of running containers in the node's tree of shaping: <run>/shaping.json, {uuid: slot}."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from pyvz.linux.file import flock, read_text_limited, write_atomic
from pyvz.store.paths import Paths

_LOCK_TIMEOUT = 30.0


@contextmanager
def held(paths: Paths) -> Iterator[dict[str, int]]:
    """Hold the slots of a node; what the block has changed in them is written at its end."""
    path = paths.run / "shaping.json"
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with flock(path.with_name("shaping.lock"), timeout=_LOCK_TIMEOUT):
        slots = _load(paths)
        before = dict(slots)
        yield slots
        if not slots:
            path.unlink(missing_ok=True)
        elif slots != before:
            write_atomic(path, json.dumps(slots).encode(), 0o600)


def _load(paths: Paths) -> dict[str, int]:
    try:
        found = json.loads(read_text_limited(paths.run / "shaping.json"))
        return {str(uuid): int(slot) for uuid, slot in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}
