"""What is wanted of a migration, and what has happened.  Values only."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyvz.errors import ProtocolError
from pyvz.migration.wire import SILENCE


class Request(NamedTuple):
    """What is wanted.  None: as the original's default.

    target: [user@]host[:port].  online: do not stop it.  clone: it stays here, a copy goes.
    name, uuid, private: what it is to be over there.  remove: its files here go.
    start: whether it runs afterwards as it did before.  shared: False: copy in any case.
    ignore: checks to skip.  ssh: options for ssh.  silence: seconds after which a quiet
    connection counts as broken.  compress: worth it on all but the fastest networks.
    post_copy: it runs there before all of its memory has followed.
    memory_rounds: memory may go in rounds while it runs (pre-copy).
    """

    target: str
    online: bool = False
    clone: bool = False
    name: str | None = None
    uuid: str | None = None
    private: str | None = None
    remove: bool = False
    start: bool = True
    shared: bool | None = None
    ignore: tuple[str, ...] = ()
    ssh: tuple[str, ...] = ()
    silence: float = SILENCE
    compress: bool = True
    dry_run: bool = False
    post_copy: bool = False
    memory_rounds: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return it for a message."""
        return self._asdict()

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Request:
        """Return the request in a message; raises ProtocolError."""
        try:
            known = {name: fields[name] for name in cls._fields if name in fields}
            known |= {"ignore": tuple(known["ignore"]), "ssh": ()}
            return cls(**known)
        except (KeyError, TypeError) as error:
            raise ProtocolError("The other node asks for something unknown") from error


class Report(NamedTuple):
    """What happened.

    uuid, name, host: of the environment over there.  seconds: all of it.  still: how long it stood.
    rounds: bytes of each round of the disks.  memory: bytes of the images of its memory.
    memory_rounds: pages of each round of its memory before it stood still (pre-copy).
    precopy: why there was none; "" where there was, or where none is wanted.
    sent: bytes on the wire.
    started: whether it runs there; problem: why not, though it should.
    phases: every stage with its seconds, in their order.
    """

    uuid: str
    name: str
    host: str
    seconds: float
    still: float
    rounds: tuple[int, ...]
    sent: int
    memory: int
    started: bool
    problem: str
    phases: tuple[tuple[str, float], ...] = ()
    memory_rounds: tuple[int, ...] = ()
    precopy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it for a message."""
        return self._asdict()

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Report:
        """Return the report in a message; raises ProtocolError."""
        try:
            return cls(**{name: fields[name] for name in cls._fields})
        except KeyError as error:
            raise ProtocolError("The other node does not tell what happened") from error
