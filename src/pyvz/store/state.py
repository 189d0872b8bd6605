"""Run state: what vzd wrote down about an environment that runs or is mounted.

``<root>/run/pyvz/state/<uuid>.json``, on tmpfs, so it is gone after a reboot.  It is a hint, never
the truth: it carries boot id, pid and start time, and the reader compares them with the kernel.
Written only by the holder of the environment's lease, atomically, after the kernel has changed.
A file that cannot be understood counts as absent (with a warning).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

from pyvz.linux.file import write_atomic
from pyvz.model.environment import canonical_uuid
from pyvz.model.status import Status
from pyvz.store.paths import Paths

log = logging.getLogger(__name__)

_NOTHING: Mapping[str, object] = {}


class RunState(NamedTuple):
    """What is known about one environment.

    boot_id: /proc/sys/kernel/random/boot_id when it was written.
    pid, start_time: of init on the node (field 22 of /proc/<pid>/stat); 0, 0 when none runs.
    status: the state that was reached last.
    started_at: wall-clock seconds since the epoch when init was started; 0.0 when none runs.
    data: whatever else its owner wants to find again (JSON values only).
    """

    boot_id: str
    pid: int
    start_time: int
    status: Status
    started_at: float = 0.0
    data: Mapping[str, object] = _NOTHING

    @classmethod
    def load(cls, paths: Paths, uuid: str) -> Self | None:
        """Return the state that was saved last, or None."""
        path = _path(paths, uuid)
        try:
            fields = json.loads(path.read_bytes())
            return cls(
                boot_id=str(fields["boot_id"]),
                pid=int(fields["pid"]),
                start_time=int(fields["start_time"]),
                status=Status(fields["status"]),
                started_at=float(fields["started_at"]),
                data=dict(fields["data"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be read and is ignored: %s", path, error)
            return None

    def save(self, paths: Paths, uuid: str) -> None:
        """Write it down, replacing what was there.  OSError when the disk refuses."""
        path = _path(paths, uuid)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fields = self._asdict() | {"data": dict(self.data)}
        write_atomic(path, json.dumps(fields).encode() + b"\n", 0o644, durable=False)

    @staticmethod
    def clear(paths: Paths, uuid: str) -> None:
        """Forget it; nothing to forget is fine."""
        _path(paths, uuid).unlink(missing_ok=True)

    @classmethod
    def all(cls, paths: Paths) -> dict[str, Self]:
        """Return every saved state by UUID (for recovery)."""
        found: dict[str, Self] = {}
        for path in sorted(_directory(paths).glob("*.json")):
            if (uuid := canonical_uuid(path.stem)) and (state := cls.load(paths, uuid)):
                found[uuid] = state
        return found


def _directory(paths: Paths) -> Path:
    return paths.run / "state"


def _path(paths: Paths, uuid: str) -> Path:
    return _directory(paths) / f"{uuid}.json"
