"""Domain XML of a client, read: what it asks for, with nothing dropped in silence.

`read` makes a `Wanted` of a description and refuses, by name, what we cannot keep (code 67).  What
may be there is said in domaingrammar.py; a few elements have no meaning for a container: clients
write them without being asked (a clock in UTC, a VNC screen, the actions on power-off).
"""

from __future__ import annotations

from typing import Final, NamedTuple
from xml.etree.ElementTree import Element

from pyvz.gateway import domaingrammar, domaintuning, failure
from pyvz.gateway.domaingrammar import check
from pyvz.gateway.domaintuning import Tuning
from pyvz.gateway.domainxml import INIT, ROUTED
from pyvz.gateway.failure import Failure
from pyvz.gateway.notes import parsed
from pyvz.model.environment import canonical_uuid
from pyvz.units import GIB, KIB, MIB

_UNITS: Final = {
    "b": 1, "bytes": 1, "KB": 1000, "k": KIB, "KiB": KIB, "MB": 10**6, "M": MIB, "MiB": MIB,
    "GB": 10**9, "G": GIB, "GiB": GIB, "TB": 10**12, "T": GIB * KIB, "TiB": GIB * KIB,
}  # fmt: skip


class Card(NamedTuple):
    """An interface.  network: a virtual network, or ROUTED.  bridge: in place of a network."""

    network: str = ""
    bridge: str = ""
    mac: str = ""
    ips: tuple[str, ...] = ()  # with prefixes
    ifname: str = ""
    connected: bool = True
    model: str = ""


class FileSystem(NamedTuple):
    """A disk of a container.  kind: template, file (an image) or mount (a tree of ours)."""

    kind: str
    source: str
    target: str


class Wanted(NamedTuple):
    """What a description asks for.  memory: bytes; uuid "" when it names none.

    current_memory: what it is to have now, 0 where nothing is said.
    """

    name: str
    uuid: str
    os_type: str
    memory: int
    cpus: int
    cpuset: str
    tuning: Tuning
    title: str
    description: str
    current_memory: int
    metadata: Element | None
    file_systems: tuple[FileSystem, ...]
    cards: tuple[Card, ...]


def read(text: str) -> Wanted:
    """Return what a description asks for; raises Failure (27: no XML, 67: not supported)."""
    top = parsed(text, "description of the domain")
    if top.tag != "domain":
        raise Failure(failure.XML, f"This describes no domain but a <{top.tag}>")
    if top.get("type") not in {"vz", "parallels"}:
        raise Failure(failure.UNSUPPORTED, f"Domains of type '{top.get('type')}' are not run here")
    os_type = _os_type(top)
    check(top, domaingrammar.MACHINE if os_type == "hvm" else domaingrammar.CONTAINER)
    _check_amounts(top)
    name = (top.findtext("name") or "").strip()
    uuid = (top.findtext("uuid") or "").strip()
    if not name:
        raise Failure(failure.XML, "The domain has no name")
    if uuid and canonical_uuid(uuid) is None:
        raise Failure(failure.XML, f"'{uuid}' is no UUID")
    vcpu = top.find("vcpu")
    devices = top.find("devices")
    parts = list(devices) if devices is not None else []
    return Wanted(
        name=name,
        uuid=canonical_uuid(uuid) or "",
        os_type=os_type,
        memory=size_of(top.find("memory")),
        cpus=_number(vcpu, "vcpu"),
        cpuset=(vcpu.get("cpuset") or "") if vcpu is not None else "",
        tuning=domaintuning.read(top, _number(vcpu, "vcpu")),
        title=top.findtext("title") or "",
        description=top.findtext("description") or "",
        current_memory=size_of(top.find("currentMemory")),
        metadata=top.find("metadata"),
        file_systems=tuple(_file_system(each) for each in parts if each.tag == "filesystem"),
        cards=tuple(card(each) for each in parts if each.tag == "interface"),
    )


def limit_of(wanted: Wanted, present: int | None = None) -> int:
    """Return the one limit of memory that is meant, where PRESENT is that of now; 0: none is said.

    Clients that change what a domain has now leave its most (<memory>) as it is.  Raises Failure
    (67) where both are new and differ.
    """
    most, current = wanted.memory, wanted.current_memory
    if not 0 < current < most:
        return most
    if present is not None and most // KIB == present // KIB:
        return current
    raise Failure(
        failure.UNSUPPORTED,
        "A <currentMemory> below <memory> is not supported: there is one limit, so write the same"
        " in both",
    )


def card(element: Element) -> Card:
    """Return an interface; raises Failure (67) for what no interface of ours has."""
    check(element, domaingrammar.MACHINE, "devices/interface")
    kind = element.get("type")
    source = element.find("source")
    if kind not in {"network", "bridge"} or source is None:
        raise Failure(
            failure.UNSUPPORTED, f"An interface of type '{kind}' is not supported, network is"
        )
    mac, link, guest = element.find("mac"), element.find("link"), element.find("guest")
    model = element.find("model")
    return Card(
        network=source.get("network") or "",
        bridge=source.get("bridge") or "" if kind == "bridge" else "",
        mac=(mac.get("address") or "").lower() if mac is not None else "",
        ips=tuple(_address(each) for each in element.findall("ip")),
        ifname=(guest.get("dev") or "") if guest is not None else "",
        connected=link is None or link.get("state") != "down",
        model=(model.get("type") or "") if model is not None else "",
    )


def is_routed(found: Card) -> bool:
    """Whether a card stands for venet."""
    return found.network in {ROUTED, "Routed"}


def size_of(element: Element | None, *, default: str = "KiB") -> int:
    """Return a size with its unit (DEFAULT where none is said) in bytes; raises Failure (27)."""
    value = _number(element, "memory")
    unit = (element.get("unit") or default) if element is not None else default
    if unit not in _UNITS:
        raise Failure(failure.XML, f"'{unit}' is no unit of memory")
    return value * _UNITS[unit]


def _number(element: Element | None, what: str) -> int:
    text = (element.text or "").strip() if element is not None else ""
    if not text:
        return 0
    if not text.isascii() or not text.isdigit():
        raise Failure(failure.XML, f"<{what}>: '{text}' is no number")
    return int(text)


def _os_type(top: Element) -> str:
    found = (top.findtext("os/type") or "").strip()
    if found not in {"exe", "hvm"}:
        raise Failure(failure.UNSUPPORTED, f"The OS type '{found}' is neither exe nor hvm")
    return found


def _check_amounts(top: Element) -> None:
    """Refuse what cannot be kept of amounts and of init.  Raises Failure (67)."""
    vcpu = top.find("vcpu")
    count = (vcpu.text or "").strip() if vcpu is not None else ""
    if vcpu is not None and vcpu.get("current", count) != count:
        raise Failure(
            failure.UNSUPPORTED, "The attribute current of <vcpu> is not supported: all are there"
        )
    init = (top.findtext("os/init") or "").strip()
    if init not in {"", INIT}:
        raise Failure(failure.UNSUPPORTED, f"<os/init> is {INIT} in every container")


def _file_system(element: Element) -> FileSystem:
    kind = element.get("type") or "mount"
    source, target = element.find("source"), element.find("target")
    attribute = {"template": "name", "file": "file", "mount": "dir"}.get(kind)
    if attribute is None or source is None or target is None:
        raise Failure(
            failure.UNSUPPORTED, f"A filesystem of type '{kind}' is not supported; template is"
        )
    return FileSystem(kind, source.get(attribute) or "", target.get("dir") or "")


def _address(element: Element) -> str:
    prefix = element.get("prefix")
    return (element.get("address") or "") + (f"/{prefix}" if prefix else "")
