"""What the giving node says about the environment, so that the other can say no.  Values only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

from pyvz.errors import ProtocolError, UsageError
from pyvz.image.disk import normal_guid
from pyvz.migration import messages
from pyvz.model.environment import Environment, Kind, canonical_uuid, check_name
from pyvz.storage.shots import ShotImage, Shots

IMAGE, TREE, HOME = "image", "tree", "home"  # forms in which a disk travels
STREAM: Final = "stream"  # as its file system writes it down
MIRROR: Final = "mirror"  # by QEMU, while the machine runs
FORMS: Final = (IMAGE, TREE, HOME, STREAM, MIRROR)
TOKEN: Final = ".migrate-token"  # noqa: S105  no secret; the file that proves a shared home
_MAX_DISKS: Final = 64
_SCHEMA: Final = {
    "uuid": "str",
    "envid": "str",
    "name": "str",
    "conf": "str",
    "memory": "int",
    "running": "bool",
    "live": "bool",
    "machine": "str",
    "kernel": "str",
    "cpu": "list",
    "driver": "str",
    "disks": "list",
    "place": "str",
    "token": "str",
    "private": "str?",
    "shared": "bool?",
    "ignore": "list",
    "copy": "bool",
    "checkpoint": "dict",
    "kind": "str?",
}
_DISK: Final = {
    "name": "str",
    "form": "str",
    "driver": "str",
    "size": "int?",
    "used": "int",
    "shots": "list?",
}
_MAX_SHOTS: Final = 4096


class DiskOffer(NamedTuple):
    """One disk.  size: of the disk, None without a limit.  used: bytes that it takes.

    shots: the snapshots that come before it, as its image did (form IMAGE).
    """

    name: str
    form: str
    driver: str
    size: int | None
    used: int
    shots: Shots = Shots()


class Offer(NamedTuple):
    """An environment as it is to arrive: uuid, envid, name are those over there.

    memory: bytes that it uses.  cpu: flags of the CPU.  driver: of the root disk, "" without one.
    place, token: a file that proves that the home is on storage that both nodes have.
    private: where to put it (VE_PRIVATE with $VEID), None: as the other node does it.
    shared: False: do not look for shared storage.  ignore: checks to leave out.
    copy: there is another one like it, from which it has to differ (machine id, host keys).
    checkpoint: what is said of CRIU, for a live migration; of QEMU, for a virtual machine.
    """

    uuid: str
    envid: str
    name: str
    conf: str
    memory: int
    running: bool
    live: bool
    machine: str
    kernel: str
    cpu: tuple[str, ...]
    driver: str
    disks: tuple[DiskOffer, ...]
    place: str
    token: str
    private: str | None
    shared: bool | None
    ignore: tuple[str, ...]
    copy: bool
    checkpoint: dict[str, Any]
    kind: Kind = Kind.CT

    def to_json(self) -> dict[str, Any]:
        """Return it for a message."""
        return self._asdict() | {"disks": [each._asdict() for each in self.disks]}


def parse(value: dict[str, Any]) -> Offer:
    """Return the offer in a message; raises ProtocolError, BadValue (the name)."""
    messages.check(value, _SCHEMA, "check")
    if canonical_uuid(value["uuid"]) != value["uuid"] or len(value["envid"]) > 64:
        raise ProtocolError("The other node offers an environment without a UUID")
    if len(value["disks"]) > _MAX_DISKS or len(value["cpu"]) > 4096:
        raise ProtocolError("The other node offers too much")
    check_name(value["name"])
    known: dict[str, Any] = {field: value.get(field) for field in Offer._fields}
    known["disks"] = tuple(_disk(each) for each in value["disks"])
    known["cpu"] = tuple(str(flag) for flag in value["cpu"])
    known["kind"] = _kind(value.get("kind"))
    known["ignore"] = tuple(str(word) for word in value["ignore"])
    return Offer(**known)


def _kind(word: object) -> Kind:
    try:
        return Kind.CT if word is None else Kind(str(word))
    except ValueError:
        raise ProtocolError("The other node offers an environment of an unknown kind") from None


def _disk(value: object) -> DiskOffer:
    if not isinstance(value, dict):
        raise ProtocolError("The other node offers a disk that is none")
    messages.check(value, _DISK, "a disk")
    if value["form"] not in FORMS or value["used"] < 0 or (value["size"] or 0) < 0:
        raise ProtocolError("The other node offers a disk that cannot be")
    if "/" in value["name"] or value["name"].startswith(".") or not value["name"]:
        raise ProtocolError("The other node offers a disk with an impossible name")
    fields: dict[str, Any] = {field: value.get(field) for field in DiskOffer._fields}
    return DiskOffer(**fields | {"shots": _shots(value.get("shots"))})


def _shots(value: Any) -> Shots:  # noqa: ANN401  JSON
    """Return the snapshots in an offer: [[[id, parent, size], ...], current]."""
    if not value:
        return Shots()
    try:
        images, current = value
        shots = tuple(ShotImage(_guid(a), _guid(b), int(size)) for a, b, size in images)
        found = Shots(shots, _guid(current))
    except (TypeError, ValueError, UsageError) as error:
        raise ProtocolError("The other node offers snapshots that cannot be") from error
    if len(shots) > _MAX_SHOTS or any(not shot.guid or shot.size <= 0 for shot in shots):
        raise ProtocolError("The other node offers snapshots that cannot be")
    return found


def _guid(text: str) -> str:
    return normal_guid(text) if text else ""


def environment(offer: Offer, home: Path) -> Environment:
    """Return the environment that is to be, with its home over here."""
    return Environment(offer.uuid, offer.envid, offer.name, offer.kind, home)
