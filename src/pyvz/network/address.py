"""Addresses of containers: how they are put on an interface, and which can be had.

A reserved address belongs to its container also while that is down: file <root>/var/vz/veip/<uuid>
with one address per line, as the original has it; the start of a container, and `set`, write it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from pathlib import Path

from pyvz.errors import AddressInUse, BadValue, NotEnoughResources
from pyvz.linux.file import flock, write_atomic
from pyvz.model.grammar_list import Address
from pyvz.store.paths import Paths

_LOCK_TIMEOUT = 60.0
_SEARCHED = 1 << 16  # addresses of one range that are looked at


@lru_cache(maxsize=1 << 16)
def parsed(address: str) -> IPv4Address | IPv6Address:
    """Return what a bare address means; ValueError.

    The same ones are looked at again and again, and to parse one takes 10 microseconds: for a
    container with a thousand of them that would be most of what one more costs.
    """
    return ip_address(address)


@lru_cache(maxsize=1 << 16)
def bare(address: str) -> str:
    """Return a bare address as the kernel writes it."""
    return str(parsed(address))


@lru_cache(maxsize=1 << 16)
def family(address: str) -> str:
    """Return "4" or "6"."""
    return str(parsed(address.partition("/")[0]).version)


@lru_cache(maxsize=1 << 16)
def with_prefix(address: Address, *, mask: bool = True) -> str:
    """Return "10.1.2.3/24"; without a mask (or mask=False) the address stands alone (/32, /128)."""
    ip = parsed(address.ip)
    if not address.mask or not mask:
        return f"{ip}/{ip.max_prefixlen}"
    return str(ip_interface(f"{ip}/{address.mask}"))


@lru_cache(maxsize=1 << 16)
def check(address: str) -> None:
    """Raise BadValue for an address that no container can have."""
    ip = parsed(address)
    if ip.is_unspecified or ip.is_multicast or ip.is_loopback or ip.is_link_local:
        raise BadValue(f"{address} cannot be the address of a container")
    if isinstance(ip, IPv4Address) and int(ip) >> 24 in {0, 255}:
        raise BadValue(f"{address} cannot be the address of a container")


class Reservations:
    """The addresses that the containers of one node have, or will have when they run."""

    def __init__(self, paths: Paths) -> None:
        self._directory = paths.root / "var/vz/veip"

    def of(self, uuid: str) -> tuple[str, ...]:
        """Return the reserved addresses of one container."""
        try:
            return tuple((self._directory / uuid).read_text().split())
        except FileNotFoundError:
            return ()

    def all(self) -> dict[str, str]:
        """Return address -> uuid."""
        found: dict[str, str] = {}
        if self._directory.is_dir():
            for path in self._directory.iterdir():
                if not path.name.startswith("."):
                    found |= dict.fromkeys(self.of(path.name), path.name)
        return found

    def set(self, uuid: str, addresses: Iterable[str]) -> None:
        """Reserve exactly ADDRESSES for a container; AddressInUse when another one has one."""
        wanted = tuple(dict.fromkeys(map(bare, addresses)))
        if wanted == self.of(uuid):
            return
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with flock(self._directory / ".lock", timeout=_LOCK_TIMEOUT):
            self._check(uuid, wanted)
            self._write(uuid, wanted)

    def release(self, uuid: str) -> None:
        """Give every address of a container back; idempotent."""
        (self._directory / uuid).unlink(missing_ok=True)

    def allocate(self, ranges: Iterable[str], taken: Iterable[str] = ()) -> str:
        """Return an address of RANGES ("10.1.0.0/24", "10.1.0.10-10.1.0.20") nobody has.

        taken: further ones that cannot be had.  Raises NotEnoughResources.
        """
        used = {*self.all(), *taken}
        for text in ranges:
            for address in _within(text):
                if str(address) not in used:
                    return str(address)
        raise NotEnoughResources("There is no free address in the range of the node")

    def _check(self, uuid: str, wanted: tuple[str, ...]) -> None:
        owners = self.all()
        for address in wanted:
            owner = owners.get(address, uuid)
            if owner != uuid:
                raise AddressInUse(f"The address {address} is in use by the container {owner}")

    def _write(self, uuid: str, addresses: tuple[str, ...]) -> None:
        path: Path = self._directory / uuid
        if addresses:
            write_atomic(path, "".join(f"{line}\n" for line in addresses).encode(), 0o644)
        else:
            path.unlink(missing_ok=True)


def _within(text: str) -> Iterator[IPv4Address | IPv6Address]:
    first, dash, last = text.partition("-")
    try:
        if not dash:
            for host, _ in zip(ip_network(text).hosts(), range(_SEARCHED), strict=False):
                yield ip_address(int(host)) if host.version == 4 else IPv6Address(int(host))
            return
        begin, end = ip_address(first), ip_address(last)
        if begin.version != end.version:
            raise BadValue(f"'{text}' is not a range of addresses")
        for number in range(int(begin), min(int(end), int(begin) + _SEARCHED) + 1):
            yield type(begin)(number)
    except ValueError as error:
        raise BadValue(f"'{text}' is not a range of addresses") from error
