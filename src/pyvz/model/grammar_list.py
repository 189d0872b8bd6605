"""Grammars of lists: flags, devices, addresses, bind mounts, shaping rates.

Values are tuples of NamedTuples (or Flags); an empty list is stored as nothing, which drops the
key.  Separators on reading are blanks and commas.  The functions add_* and remove_* serve options
that change a list (``--ipadd``, ``--devnodes``): old value and text in, new value out.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import NamedTuple

from pyvz.errors import BadValue
from pyvz.model.grammar import Hostname, Integer

_WORD = re.compile(r"[^\s,]+")
_FLAG = re.compile(r"([A-Za-z0-9_.-]{1,64}):(on|off)", re.IGNORECASE)
_DEVNODE = re.compile(r"([A-Za-z0-9_.+-]+(?:/[A-Za-z0-9_.+-]+)*):(r|w|rw|none)(?::?[qm])*")
_DEVICE = re.compile(r"([bc]):(\d{1,7}):(\d{1,7}|all|\*):([rwmq]{1,4}|none)")
_PCI = re.compile(
    r"(?:([0-9a-f]{1,4}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])", re.ASCII | re.IGNORECASE
)
_IFNAME = re.compile(r"[^\s/:,;=\x00-\x1f]{1,15}")  # dev_valid_name(), net/core/dev.c
_RATE = re.compile(r"([^\s/:,;=]{1,15}|\*):(\d{1,2}):(\d{1,10})")
_TEMPLATE = re.compile(r"[A-Za-z0-9._+@-]{1,255}")
BIND_OPTIONS = ("nosuid", "noexec", "nodev", "ro")


def words(text: str) -> list[str]:
    """Return the parts of TEXT between blanks and commas."""
    return _WORD.findall(text)


class Flags(NamedTuple):
    """Names that are on and names that are off; any other name has its default."""

    on: frozenset[str] = frozenset()
    off: frozenset[str] = frozenset()

    def get(self, name: str) -> bool | None:
        """Return whether NAME is on; None when nothing is said about it."""
        return True if name in self.on else False if name in self.off else None

    def updated(self, other: Flags) -> Flags:
        """Return these flags with what OTHER says put over them."""
        return Flags(self.on - other.off | other.on, self.off - other.on | other.off)


class OnOffFlags(NamedTuple):
    """``name:on|off`` list.  Reading keeps names that we do not know; options refuse them."""

    names: tuple[str, ...]
    upper: bool = False
    separator: str = " "

    def parse(self, text: str) -> Flags:
        """Return the flags; the last word about a name counts."""
        flags = Flags()
        for word in words(text):
            match = _FLAG.fullmatch(word)
            if match is None:
                raise BadValue(f"'{word}' is not of the form NAME:on or NAME:off")
            name = match[1].upper() if self.upper else match[1].lower()
            one = frozenset({name})
            on = match[2].lower() == "on"
            flags = flags.updated(Flags(on=one) if on else Flags(off=one))
        return flags

    def format(self, value: Flags) -> str:
        """Return the list: known names in their order, then the others."""
        known = {name: rank for rank, name in enumerate(self.names)}
        order = sorted(value.on | value.off, key=lambda name: (known.get(name, len(known)), name))
        return self.separator.join(f"{x}:{'on' if x in value.on else 'off'}" for x in order)

    def merge(self, old: Flags | None, text: str) -> Flags:
        """Return OLD with what TEXT says put over it; BadValue for a name we do not know."""
        new = self.parse(text)
        if not new.on and not new.off:
            raise BadValue("give at least one NAME:on or NAME:off")
        if unknown := sorted((new.on | new.off) - set(self.names)):
            raise BadValue(f"'{unknown[0]}' is not one of {', '.join(self.names)}")
        return (old or Flags()).updated(new)


class DeviceNode(NamedTuple):
    """A device of the node by its name below /dev, and what the container may do with it."""

    name: str
    access: str  # r, w, rw or none


class DevNodes:
    """DEVNODES: ``name:r|w|rw|none`` list."""

    def parse(self, text: str) -> tuple[DeviceNode, ...]:
        """Return the nodes; the last word about a name counts."""
        found: dict[str, DeviceNode] = {}
        for word in words(text):
            match = _DEVNODE.fullmatch(word.removeprefix("/dev/"))
            if match is None or ".." in match[1].split("/"):
                raise BadValue(f"'{word}' is not of the form DEVICE:r|w|rw|none (like net/tun:rw)")
            found[match[1]] = DeviceNode(match[1], match[2])
        return tuple(found.values())

    def format(self, value: tuple[DeviceNode, ...]) -> str:
        """Return the list."""
        return " ".join(f"{node.name}:{node.access}" for node in value)

    def merge(self, old: tuple[DeviceNode, ...] | None, text: str) -> tuple[DeviceNode, ...]:
        """Return OLD with the nodes of TEXT; ``none`` takes one away."""
        nodes = {node.name: node for node in (*(old or ()), *self.parse(text))}
        return tuple(node for node in nodes.values() if node.access != "none")


class DeviceAccess(NamedTuple):
    """A device by number; minor None stands for all of that major."""

    kind: str  # b or c
    major: int
    minor: int | None
    access: str  # letters of rwmq, or none


class Devices:
    """DEVICES: ``b|c:MAJOR:MINOR|all:rwm[q]`` list."""

    def parse(self, text: str) -> tuple[DeviceAccess, ...]:
        """Return the devices; the last word about a number counts."""
        found: dict[tuple[str, int, int | None], DeviceAccess] = {}
        for word in words(text):
            match = _DEVICE.fullmatch(word)
            if match is None:
                raise BadValue(f"'{word}' is not of the form b|c:MAJOR:MINOR|all:[r][w][m][q]|none")
            minor = None if match[3] in {"all", "*"} else int(match[3])
            access = "none" if match[4] == "none" else "".join(x for x in "rwmq" if x in match[4])
            entry = DeviceAccess(match[1], int(match[2]), minor, access)
            found[entry[:3]] = entry
        return tuple(found.values())

    def format(self, value: tuple[DeviceAccess, ...]) -> str:
        """Return the list."""
        return " ".join(
            f"{x.kind}:{x.major}:{'all' if x.minor is None else x.minor}:{x.access}" for x in value
        )

    def merge(self, old: tuple[DeviceAccess, ...] | None, text: str) -> tuple[DeviceAccess, ...]:
        """Return OLD with the devices of TEXT; ``none`` takes one away."""
        entries = {entry[:3]: entry for entry in (*(old or ()), *self.parse(text))}
        return tuple(entry for entry in entries.values() if entry.access != "none")


class Address(NamedTuple):
    """An IP address and its mask: prefix length, dotted mask, or "" when none was given."""

    ip: str
    mask: str = ""

    def __str__(self) -> str:
        return f"{self.ip}/{self.mask}" if self.mask else self.ip


def parse_address(word: str) -> Address:
    """Return the address that WORD (``ip[/mask]``) stands for; raise BadValue."""
    text, slash, mask = word.partition("/")
    try:
        ip = ip_address(text)
    except ValueError as error:
        raise BadValue(f"'{word}' is not an IP address") from error
    if slash and not (_is_prefix(mask, ip.max_prefixlen) or (ip.version == 4 and _is_mask(mask))):
        raise BadValue(f"'{word}': '{mask}' is not a network mask")
    if "%" in text:
        raise BadValue(f"'{word}': an address with a zone cannot be given")
    return Address(str(ip), mask)


def _is_prefix(mask: str, longest: int) -> bool:
    return mask.isascii() and mask.isdigit() and len(mask) <= 3 and int(mask) <= longest


def _is_mask(mask: str) -> bool:
    """Whether MASK is dotted and has its ones at the left."""
    parts = mask.split(".")
    if len(parts) != 4 or not all(_is_prefix(part, 255) for part in parts):
        return False
    bits = "".join(f"{int(part):08b}" for part in parts)
    return "01" not in bits


class Addresses:
    """IP_ADDRESS: ``ip[/mask]`` list; the placeholder 0.0.0.0 of samples does not count."""

    def parse(self, text: str) -> tuple[Address, ...]:
        """Return the addresses, each once."""
        found = (parse_address(word) for word in words(text))
        return tuple(dict.fromkeys(x for x in found if x.ip != "0.0.0.0"))  # noqa: S104

    def format(self, value: tuple[Address, ...]) -> str:
        """Return the list."""
        return " ".join(map(str, value))

    def add(self, old: tuple[Address, ...] | None, text: str) -> tuple[Address, ...]:
        """Return OLD with the addresses of TEXT; one that is there gets its new mask."""
        new = self.parse(text)
        if not new:
            raise BadValue(f"'{text}' holds no IP address")
        have = {address.ip: address for address in old or ()}
        return tuple((have | {address.ip: address for address in new}).values())

    def remove(self, old: tuple[Address, ...] | None, text: str) -> tuple[Address, ...]:
        """Return OLD without the addresses of TEXT (``all`` for all of them)."""
        if text.strip() == "all":
            return ()
        gone = {address.ip for address in self.parse(text)}
        if missing := gone - {address.ip for address in old or ()}:
            raise BadValue(f"the address {min(missing)} is not there")
        return tuple(address for address in old or () if address.ip not in gone)


class Nameservers:
    """NAMESERVER: list of addresses of DNS servers; ``inherit`` means the node's own."""

    def parse(self, text: str) -> tuple[str, ...]:
        """Return the addresses, each once, in order."""
        if text.strip().lower() == "inherit":
            return ("inherit",)
        found: dict[str, None] = {}
        for word in words(text):
            try:
                found[str(ip_address(word))] = None
            except ValueError as error:
                raise BadValue(f"'{word}' is not the IP address of a DNS server") from error
        return tuple(found)

    def format(self, value: tuple[str, ...]) -> str:
        """Return the list."""
        return " ".join(value)

    def add(self, old: tuple[str, ...] | None, text: str) -> tuple[str, ...]:
        """Return OLD with those of TEXT behind them."""
        return tuple(dict.fromkeys((*(old or ()), *self.parse(text))))


class Domains:
    """SEARCHDOMAIN: list of domain names."""

    def parse(self, text: str) -> tuple[str, ...]:
        """Return the names, each once, in order."""
        return tuple(dict.fromkeys(_domain(word) for word in words(text)))

    def format(self, value: tuple[str, ...]) -> str:
        """Return the list."""
        return " ".join(value)

    def add(self, old: tuple[str, ...] | None, text: str) -> tuple[str, ...]:
        """Return OLD with those of TEXT behind them."""
        return tuple(dict.fromkeys((*(old or ()), *self.parse(text))))


def _domain(word: str) -> str:
    labels = word.removesuffix(".").split(".")
    if word == ".":
        return word
    if len(word) > 253 or any(not label or len(label) > 63 for label in labels):
        raise BadValue(f"'{word}' is not a domain name")
    for label in labels:
        Hostname().parse(label)
    return word.removesuffix(".")


class Names(NamedTuple):
    """A list of plain names: templates, interfaces, technologies, PCI devices."""

    what: str
    pattern: re.Pattern[str]

    def parse(self, text: str) -> tuple[str, ...]:
        """Return the names, each once, in order."""
        found = words(text)
        for word in found:
            if not self.pattern.fullmatch(word):
                raise BadValue(f"'{word}' is not {self.what}")
        return tuple(dict.fromkeys(found))

    def format(self, value: tuple[str, ...]) -> str:
        """Return the list."""
        return " ".join(value)

    def add(self, old: tuple[str, ...] | None, text: str) -> tuple[str, ...]:
        """Return OLD with the names of TEXT."""
        new = self.parse(text)
        if not new:
            raise BadValue(f"'{text}' is not {self.what}")
        return tuple(dict.fromkeys((*(old or ()), *new)))

    def remove(self, old: tuple[str, ...] | None, text: str) -> tuple[str, ...]:
        """Return OLD without the names of TEXT (``all`` for all of them)."""
        if text.strip() == "all":
            return ()
        gone = self.parse(text)
        if missing := [name for name in gone if name not in (old or ())]:
            raise BadValue(f"{missing[0]} is not there")
        return tuple(name for name in old or () if name not in gone)


TEMPLATES = Names("a template name", _TEMPLATE)
WORDS = Names("a word", re.compile(r"[^\s,\"'\\$`;\x00-\x1f\x7f]{1,255}"))
INTERFACES = Names("the name of a network interface", _IFNAME)
PCI = Names("a PCI device ([DOMAIN:]BUS:SLOT.FUNCTION)", _PCI)


class Rate(NamedTuple):
    """Shaping of one traffic class (0..15) on a device of the node ("*": every one)."""

    device: str
    traffic_class: int
    kbits: int


class Rates:
    """RATE: ``DEV:CLASS:KBITS`` list."""

    def parse(self, text: str) -> tuple[Rate, ...]:
        """Return the rates; the last word about a device and class counts."""
        found: dict[tuple[str, int], Rate] = {}
        for word in words(text):
            match = _RATE.fullmatch(word)
            if match is None or int(match[2]) > 15:
                raise BadValue(f"'{word}' is not of the form DEVICE:CLASS:KBITS (like *:1:8000)")
            found[match[1], int(match[2])] = Rate(match[1], int(match[2]), int(match[3]))
        return tuple(found.values())

    def format(self, value: tuple[Rate, ...]) -> str:
        """Return the list."""
        return " ".join(f"{x.device}:{x.traffic_class}:{x.kbits}" for x in value)

    def merge(self, old: tuple[Rate, ...] | None, text: str) -> tuple[Rate, ...]:
        """Return OLD with the rates of TEXT; an empty text clears them."""
        if not text.strip():
            return ()
        rates = (*(old or ()), *self.parse(text))
        return tuple({(rate.device, rate.traffic_class): rate for rate in rates}.values())

    def merge_class(self, old: tuple[Rate, ...] | None, text: str) -> tuple[Rate, ...]:
        """As merge(), for prlctl's ``CLASS:KBITS`` (every device)."""
        return self.merge(old, " ".join(f"*:{word}" for word in words(text)))


class BindMount(NamedTuple):
    """A directory of the node that appears in the container.

    source: on the node; "" means ``<private>/mnt/<target>``.  target: in the container.
    """

    source: str
    target: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = f"{self.source}:{self.target}" if self.source else self.target
        return ",".join((place, *self.options))


class BindMounts:
    """BINDMOUNT: ``[src:]dst[,opts]`` list, separated by blanks."""

    def parse(self, text: str) -> tuple[BindMount, ...]:
        """Return the mounts; the last word about a target counts."""
        mounts = [_bind_mount(word) for word in text.split()]
        return tuple({mount.target: mount for mount in mounts}.values())

    def format(self, value: tuple[BindMount, ...]) -> str:
        """Return the list."""
        return " ".join(map(str, value))

    def add(self, old: tuple[BindMount, ...] | None, text: str) -> tuple[BindMount, ...]:
        """Return OLD with the mounts of TEXT."""
        new = self.parse(text)
        if not new:
            raise BadValue("give [SOURCE:]TARGET[,OPTIONS]")
        return tuple({mount.target: mount for mount in (*(old or ()), *new)}.values())

    def remove(self, old: tuple[BindMount, ...] | None, text: str) -> tuple[BindMount, ...]:
        """Return OLD without the targets of TEXT (``all`` for all of them)."""
        if text.strip() == "all":
            return ()
        gone = text.split()
        if missing := [x for x in gone if x not in {mount.target for mount in old or ()}]:
            raise BadValue(f"nothing is mounted at {missing[0]}")
        return tuple(mount for mount in old or () if mount.target not in gone)


def _bind_mount(word: str) -> BindMount:
    place, *options = word.split(",")
    source, colon, target = place.partition(":")
    if not colon:
        source, target = "", place
    for path in (source, target) if source else (target,):
        if not path.startswith("/") or ".." in path.split("/") or '"' in path:
            raise BadValue(f"'{word}': '{path}' is not an absolute path")
    if unknown := [option for option in options if option not in BIND_OPTIONS]:
        raise BadValue(f"'{word}': '{unknown[0]}' is not one of {', '.join(BIND_OPTIONS)}")
    return BindMount(source, target, tuple(dict.fromkeys(options)))


class MemInfo(NamedTuple):
    """MEMINFO: ``none``, ``pages:N``, ``privvmpages:N`` (dead in 7; kept as text)."""

    modes: tuple[str, ...] = ("pages", "privvmpages")

    def parse(self, text: str) -> str:
        """Return the canonical text."""
        mode, _, number = text.strip().lower().partition(":")
        if mode == "none" and not number:
            return "none"
        if mode not in self.modes:
            raise BadValue(f"'{text}' is not none, pages:N or privvmpages:N")
        return f"{mode}:{Integer(1).parse(number)}"

    def format(self, value: str) -> str:
        """Return the text."""
        return value
