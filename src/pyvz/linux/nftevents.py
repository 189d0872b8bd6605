"""Hears when packet filters of this network namespace change, whoever changes them.

The kernel tells every change of a table by a message of nfnetlink (nf_tables_api.c: nft_notify).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

from pyvz.errors import Unsupported

_NETFILTER = 12  # NETLINK_NETFILTER
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NFTABLES = 7  # NFNLGRP_NFTABLES
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr; struct nfgenmsg follows, family first
_BUFFER = 64 << 10

# NFPROTO_*: those through which packets pass that are routed, or are the node's own.
_PASSED: Final = frozenset({1, 2, 10})
_TABLES: Final = frozenset({0, 2})  # NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE


class Events:
    """A socket that becomes readable when rules change."""

    def __init__(self, own: str) -> None:
        """Listen.  own: how the names of tables begin whose contents are no news.

        Raises Unsupported where the kernel has no nftables.
        """
        self._own = own.encode()
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            _NETFILTER,
        )
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES)
        except OSError as error:
            self._socket.close()
            raise Unsupported("The kernel tells nobody of changed packet filters") from error

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def drain(self) -> bool:
        """Read what there is; return whether it is news.

        That is everything about tables of ip, ip6 or inet; of our own only that they come or go.
        """
        found = False
        while True:
            try:
                raw = self._socket.recv(_BUFFER)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS: more was said than fitted, so it may have been
                found = True
                continue
            found = found or any(map(self._counts, _messages(raw)))

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def _counts(self, message: bytes) -> bool:
        _, kind, _, _, _ = _HEADER.unpack_from(message)
        if len(message) <= _HEADER.size or message[_HEADER.size] not in _PASSED:
            return False
        return kind & 0xFF in _TABLES or self._own not in message


def _messages(raw: bytes) -> Iterator[bytes]:
    """Give each message: struct nlmsghdr, struct nfgenmsg, attributes."""
    start = 0
    while start + _HEADER.size <= len(raw):
        length = max(_HEADER.unpack_from(raw, start)[0], _HEADER.size)
        yield raw[start : start + length]
        start += (length + 3) & ~3
