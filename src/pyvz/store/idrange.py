"""Ranges of user and group ids: which ids of the node a container's root and users stand for.

Each container has 65536 ids of its own, out of 0x70000000 to 0x7FFDFFFF (4094 ranges).  systemd's
UIDS-GIDS document calls exactly that span unused: below it lie the ranges of systemd-nspawn (from
0x80000), login users, systemd-homed, DynamicUser and what useradd writes to /etc/subuid (from
100000 to 600100000), above it the range of foreign images (0x7FFE0000), and from 2^31 on numbers
that programs mistake for negative.  Ranges of /etc/subuid and /etc/subgid (Incus, podman) and ids
of /etc/passwd and /etc/group that do lie in our span are stepped over.

Ids belong to the machine, not to a node: two nodes with two roots share the kernel.  So a range is
claimed in one place, /var/lib/pyvz/idranges, whatever the root of the node is:

    /var/lib/pyvz/idranges/1879048192     "<root of the node>\\n<uuid>\\n"    the claim
    <root>/var/lib/pyvz/idrange/<uuid>    "1879048192 65536\\n"              the node's own note

A claim is written to a temporary file and linked to its name, which is atomic and fails when the
name is taken (link(2)), so nobody locks anything.  Where to look first is a hash of root and UUID,
so a crash between claim and note is healed by allocating again: it meets its own claim first.
Claims of nodes whose root is gone are taken over only when every range is in use.  Files on disk
keep unshifted owners (idmapped mounts), so the numbers matter only while a container runs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from pyvz.errors import NotEnoughResources
from pyvz.linux.file import fsync_directory, write_atomic
from pyvz.model.environment import canonical_uuid
from pyvz.model.limits import IdRange
from pyvz.store.leftover import sweep_directory
from pyvz.store.paths import Paths

log = logging.getLogger(__name__)

FIRST = 0x70000000
COUNT = 65536
RANGES = (0x7FFE0000 - FIRST) // COUNT
MACHINE_CLAIMS = Path("/var/lib/pyvz/idranges")
_Span = tuple[int, int]  # first id, first id behind it


class IdRanges:
    """The id ranges of one node.  Safe against threads, processes and other nodes."""

    def __init__(
        self, paths: Paths, *, claims: Path = MACHINE_CLAIMS, etc: Path = Path("/etc")
    ) -> None:
        """Make it for a node.  claims, etc: the machine's directories (tests have their own)."""
        self._root = os.fspath(paths.root)
        self._notes = paths.lib / "idrange"
        self._claims = claims
        self._etc = etc

    def get(self, uuid: str) -> IdRange | None:
        """Return the range of a container, or None when it has none."""
        try:
            first = int((self._notes / uuid).read_text(encoding="ascii").split()[0])
        except (FileNotFoundError, ValueError, IndexError):
            return None
        return IdRange(first, COUNT) if self._owner(first) == (self._root, uuid) else None

    def allocate(self, uuid: str) -> IdRange:
        """Return the range of a container; a new one when it has none yet.

        Raises NotEnoughResources when no range is left.
        """
        have = self.get(uuid)
        if have is not None:
            return have
        self._claims.mkdir(mode=0o755, parents=True, exist_ok=True)
        taken = list(foreign_spans(self._etc))
        for first in self._candidates(uuid):
            if any(low < first + COUNT and first < high for low, high in taken):
                continue
            if self._claim(first, uuid):
                return self._note(first, uuid)
        raise NotEnoughResources(
            f"No range of user ids is left for container {uuid}",
            hint=f"Remove claims of nodes that are gone from {self._claims}.",
        )

    def release(self, uuid: str) -> None:
        """Give the range of a container back; having none is fine."""
        have = self.get(uuid)
        if have is not None:
            (self._claims / str(have.first)).unlink(missing_ok=True)
        (self._notes / uuid).unlink(missing_ok=True)

    def all(self) -> dict[str, IdRange]:
        """Return the range of every container of this node."""
        uuids = [path.name for path in self._notes.glob("*") if canonical_uuid(path.name)]
        return {uuid: found for uuid in sorted(uuids) if (found := self.get(uuid))}

    def prune(self, keep: set[str]) -> list[str]:
        """Release what belongs to containers of this node other than KEEP (for recovery).

        Returns their UUIDs.  KEEP has to hold every registered container and every one that is
        being made.
        """
        sweep_directory(self._claims)
        firsts = [int(path.name) for path in self._claims.glob("[0-9]*") if path.name.isdigit()]
        owners = [(first, owner) for first in firsts if (owner := self._owner(first))]
        gone = [(first, uuid) for first, (root, uuid) in owners if root == self._root]
        gone = [(first, uuid) for first, uuid in gone if uuid not in keep]
        for first, uuid in gone:
            (self._claims / str(first)).unlink(missing_ok=True)
            (self._notes / uuid).unlink(missing_ok=True)
        return [uuid for _first, uuid in gone]

    def _candidates(self, uuid: str) -> Iterator[int]:
        """Yield every range once, those of nodes that are gone as the last (freed on the way)."""
        digest = hashlib.sha256(f"{self._root}\n{uuid}".encode()).digest()
        start = int.from_bytes(digest[:8], "big") % RANGES
        order = [FIRST + (start + n) % RANGES * COUNT for n in range(RANGES)]
        yield from order
        for first in order:
            if self._free_abandoned(first):
                yield first

    def _claim(self, first: int, uuid: str) -> bool:
        """Try to claim a range; True when it is ours now (or was already)."""
        claim = self._claims / str(first)
        temporary = self._claims / f".{os.getpid()}.{threading.get_ident()}.tmp"
        if not claim.exists():
            write_atomic(temporary, f"{self._root}\n{uuid}\n", 0o644)
            try:
                os.link(temporary, claim)
                fsync_directory(self._claims)
            except FileExistsError:
                pass  # somebody was faster
            finally:
                temporary.unlink(missing_ok=True)
        return self._owner(first) == (self._root, uuid)

    def _note(self, first: int, uuid: str) -> IdRange:
        self._notes.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(self._notes / uuid, f"{first} {COUNT}\n", 0o644)
        return IdRange(first, COUNT)

    def _owner(self, first: int) -> tuple[str, str] | None:
        try:
            text = (self._claims / str(first)).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        root, _, uuid = text.rstrip("\n").rpartition("\n")
        return root, uuid

    def _free_abandoned(self, first: int) -> bool:
        """Drop the claim of a node whose root is gone; True when the range is free now."""
        owner = self._owner(first)
        if owner is None:
            return True
        if not owner[0].startswith("/") or Path(owner[0]).exists():
            return False
        log.warning("the ids from %d of %s, a node that is gone, are used again", first, owner[0])
        (self._claims / str(first)).unlink(missing_ok=True)
        return True


def foreign_spans(etc: Path) -> Iterator[_Span]:
    """Yield the ids that subuid, subgid, passwd and group of the machine give to others."""
    for name, field, counted in (
        ("subuid", 1, True),
        ("subgid", 1, True),
        ("passwd", 2, False),
        ("group", 2, False),
    ):
        for line in _lines(etc / name):
            words = line.split(":")
            try:
                first = int(words[field])
                count = int(words[field + 1]) if counted else 1
            except (IndexError, ValueError):
                continue
            if first < FIRST + RANGES * COUNT and first + count > FIRST:
                yield first, first + count


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
