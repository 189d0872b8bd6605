"""Who is promised how much memory: the registered VEs of the node, and the policy in force.

    <run>/memory/ves/<name>.json    one registered VE ("/" in a name is written %2F)
    <run>/memory/policy             name of the policy in force
    <run>/memory/lock               held while promises are compared and made

On tmpfs: after a reboot nothing runs, so nothing is promised.  It outlives vzd, which reads it
again and drops those that have ended meanwhile.  An entry is made before its VE starts, so that
two starts at once cannot be promised the same memory.

Files are replaced by rename without fsync: nothing here must survive a crash of the machine.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyvz.errors import BadValue
from pyvz.linux.file import flock, read_text_limited, write_atomic
from pyvz.model.memory import Reservation, VeType
from pyvz.model.vcmmdconf import VcmmdConf
from pyvz.store.paths import Paths

log = logging.getLogger(__name__)

LOCK_TIMEOUT = 60.0
_MAX_NAME = 200


def check_name(name: str) -> str:
    """Return NAME when a VE may be registered under it; raise BadValue."""
    parts = name.split("/")
    if (
        not name
        or len(name.encode()) > _MAX_NAME
        or not name.isprintable()
        or any(part in {"", ".", ".."} for part in parts)
    ):
        raise BadValue(f"'{name}' is not a valid name of a VE")
    return name


class MemoryBook:
    """The book of one node.  Thread-safe; other processes are excluded by `locked`."""

    def __init__(self, paths: Paths) -> None:
        self._run = paths.run / "memory"
        self._ves = self._run / "ves"
        self._conf = paths.etc / "vcmmd.conf"
        self._guard = threading.RLock()
        self._entries: dict[str, Reservation] = {}
        self._seen = -1  # change time of the folder that `_entries` were read from
        self._parsed: tuple[int, VcmmdConf] = (-1, VcmmdConf({}))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep everybody else from promising memory; raises Locked after 10 s."""
        self._ves.mkdir(mode=0o755, parents=True, exist_ok=True)
        with self._guard, flock(self._run / "lock", timeout=LOCK_TIMEOUT):
            yield

    def entries(self) -> dict[str, Reservation]:
        """Return the registered VEs by name."""
        with self._guard:
            changed = self._changed()
            if changed != self._seen:
                self._entries = self._read()
                self._seen = changed
            return dict(self._entries)

    def put(self, entry: Reservation) -> None:
        """Write an entry down, new or changed."""
        with self._guard:
            entries = self.entries()
            if entries.get(entry.name) == entry:
                return
            self._ves.mkdir(mode=0o755, parents=True, exist_ok=True)
            _replace(self._path(entry.name), json.dumps(entry._asdict()))
            self._entries = {**entries, entry.name: entry}
            self._seen = self._changed()

    def drop(self, name: str) -> None:
        """Forget an entry; nothing to forget is fine."""
        with self._guard:
            entries = self.entries()
            self._path(name).unlink(missing_ok=True)
            entries.pop(name, None)
            self._entries = entries
            self._seen = self._changed()

    @property
    def policy(self) -> str:
        """The name of the policy in force: chosen at run time, else that of the file."""
        with suppress(OSError):
            return read_text_limited(self._run / "policy", 256).strip()
        return self.conf().policy

    def set_policy(self, name: str) -> None:
        """Note which policy is in force."""
        self._run.mkdir(mode=0o755, parents=True, exist_ok=True)
        _replace(self._run / "policy", name + "\n")

    def conf(self) -> VcmmdConf:
        """Return vcmmd.conf as it is now; a missing or damaged one counts as empty."""
        try:
            changed = self._conf.stat().st_mtime_ns
        except OSError:
            return VcmmdConf({})
        if changed != self._parsed[0]:
            try:
                conf = VcmmdConf.parse(read_text_limited(self._conf))
            except OSError as error:
                conf = VcmmdConf({}, (str(error),))
            for problem in conf.problems:
                log.warning("%s: %s", self._conf, problem)
            self._parsed = (changed, conf)
        return self._parsed[1]

    def save_conf(self, conf: VcmmdConf) -> None:
        """Write vcmmd.conf."""
        self._conf.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(self._conf, conf.render())

    def _changed(self) -> int:
        try:
            return self._ves.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _read(self) -> dict[str, Reservation]:
        found: dict[str, Reservation] = {}
        if not self._ves.is_dir():
            return found
        for path in sorted(self._ves.glob("[!.]*.json")):
            try:
                fields = json.loads(path.read_bytes())
                entry = Reservation(**fields)._replace(type=VeType(fields["type"]))
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.warning("%s cannot be read and is ignored: %s", path, error)
                continue
            found[entry.name] = entry
        return found

    def _path(self, name: str) -> Path:
        return self._ves / (check_name(name).replace("%", "%25").replace("/", "%2F") + ".json")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{threading.get_ident():x}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
