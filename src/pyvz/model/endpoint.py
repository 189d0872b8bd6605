"""Where something listens for the network, as vz.conf writes it: "[ADDRESS:]PORT"."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final, NamedTuple

from pyvz.errors import BadValue
from pyvz.model.grammar import Integer

LOOPBACK: Final = "127.0.0.1"


class Endpoint(NamedTuple):
    """An address and a port of TCP."""

    address: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether only this node reaches it."""
        return ip_address(self.address).is_loopback


def endpoint(key: str, text: str, *, default: str = LOOPBACK, port: int = 0) -> Endpoint | None:
    """Return what KEY of vz.conf means; None: not at all.

    default: the address where none is given.  port: that of "yes", 0: it has to be given.
    Raises BadValue.
    """
    word = text.strip()
    if word.lower() in {"", "no", "off", "0"}:
        return None
    if port and word.lower() in {"yes", "on"}:
        return Endpoint(default, port)
    address, _, number = word.rpartition(":")
    address = address.strip("[]") or default
    try:
        ip_address(address)
        return Endpoint(address, Integer(1, 65535).parse(number))
    except (ValueError, BadValue) as error:
        raise BadValue(
            f"{key}: '{text}' is not [ADDRESS:]PORT", hint=f'For instance {key}="{port or 9737}".'
        ) from error
