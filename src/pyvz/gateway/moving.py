"""What a client wants of a migration: its flags, parameters and URIs as our request.  Values only.

Two forms (reference/libvirt-rpc.md, 7).  Managed: the client calls both nodes and carries cookies;
peer-to-peer: it calls the giving node alone and names the taking one by a URI of connections.
Either way the giving node reaches the other one by ssh, as `prlctl migrate` does.

    vzmigr://[user@]host[:port]        where the data goes; port and user are those of ssh
    vz+ssh://[user@]host/system        a connection; of other transports only the host counts

Both may end with ?keyfile=PATH&known_hosts=PATH&no_verify=1, as libvirt's own URIs for ssh do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from pyvz.gateway import failure
from pyvz.gateway.failure import Failure
from pyvz.gateway.xdr import Typed
from pyvz.migration import address
from pyvz.migration.request import Request

LIVE, PEER, NON_SHARED_DISK, COMPRESSED = 1, 2, 64, 1 << 11
# Persistent and undefined here is what ours always are; differences only are copied where we can.
_GRANTED: Final = 8 | 16 | 128
_UNDERSTOOD: Final = LIVE | PEER | NON_SHARED_DISK | COMPRESSED | _GRANTED
_REFUSED: Final = {
    4: "--tunnelled", 32: "--suspend", 256: "change protection", 512: "--unsafe",
    1 << 10: "--offline", 1 << 12: "--abort-on-error", 1 << 13: "--auto-converge",
    1 << 14: "--rdma-pin-all",
    1 << 15: "--postcopy", 1 << 16: "--tls", 1 << 17: "--parallel",
    1 << 18: "--copy-storage-synchronous-writes", 1 << 19: "resuming a failed post-copy",
    1 << 20: "--zero-copy",
}  # fmt: skip
_SCHEME: Final = "vzmigr"
_TRANSPORTS: Final = ("ssh", "tls", "tcp", "")
_NAME, _XML, _URI, _BANDWIDTH = "destination_name", "destination_xml", "migrate_uri", "bandwidth"


class Wish(NamedTuple):
    """The parameters of a migration.  uri: where to; xml: what it is to be over there."""

    name: str | None = None
    xml: str | None = None
    uri: str | None = None


class Cookie(NamedTuple):
    """What the client carries from one node to the other."""

    uuid: str
    name: str

    def to_bytes(self) -> bytes:
        """Return it as it travels."""
        return json.dumps(self._asdict()).encode()

    @classmethod
    def parse(cls, data: bytes) -> Cookie | None:
        """Return the cookie in DATA, None when there is none; raises Failure (8)."""
        if not data:
            return None
        try:
            fields = json.loads(data.rstrip(b"\0"))
            return cls(str(fields["uuid"]), str(fields["name"]))
        except (ValueError, KeyError, TypeError) as error:
            raise Failure(failure.INVALID_ARGUMENT, "The cookie is not one of ours") from error


def check(flags: int) -> None:
    """Raise Failure (84) for flags that are not supported."""
    for bit in range(32):
        if flags >> bit & 1 and not _UNDERSTOOD >> bit & 1:
            word = _REFUSED.get(1 << bit, f"The flag 0x{1 << bit:x}")
            raise Failure(
                failure.OPERATION_UNSUPPORTED, f"{word} is not supported by migration of vz domains"
            )


def wish(params: Sequence[Typed]) -> Wish:
    """Return what the parameters say; raises Failure (84) for one that is not supported."""
    values = {each.field: each.value for each in params}
    if values.pop(_BANDWIDTH, 0):
        raise Failure(failure.OPERATION_UNSUPPORTED, "--bandwidth is not supported: only 0, none")
    unknown = sorted(values.keys() - {_NAME, _XML, _URI})
    if unknown:
        words = ", ".join(unknown)
        raise Failure(
            failure.OPERATION_UNSUPPORTED, f"{words}: not supported by migration of vz domains"
        )
    name, xml, uri = (values.get(each) for each in (_NAME, _XML, _URI))
    return Wish(*(None if each is None else str(each) for each in (name, xml, uri)))


def target(host: str) -> str:
    """Return the URI by which a node is found that was not named otherwise; raises Failure (9)."""
    if host.startswith("localhost"):
        raise Failure(
            failure.FAILED,
            f"The other node's own name is '{host}', by which this one cannot find it:"
            " say where with --migrateuri vzmigr://HOST",
        )
    return f"{_SCHEME}://{host}"


def request(asked: Wish, connection: str | None, flags: int) -> Request:
    """Return the request of a migration; raises Failure (8), BadValue, Unsupported."""
    where, port = _place(asked.uri) if asked.uri is not None else _peer(connection)
    if not where.hostname:
        raise Failure(failure.INVALID_ARGUMENT, f"'{where.geturl()}' names no host")
    host = f"[{where.hostname}]" if ":" in where.hostname else where.hostname
    user = f"{unquote(where.username)}@" if where.username else ""
    if where.password:
        user = f"{unquote(where.username or '')}:{unquote(where.password)}@"
    name = f"{user}{host}" + (f":{port}" if port else "")
    address.parse(name)
    return Request(
        target=name,
        online=True,  # one that runs is never stopped for it, with --live or without
        name=asked.name,
        shared=False if flags & NON_SHARED_DISK else None,
        ssh=_options(where.query),
    )


def _place(text: str) -> tuple[SplitResult, int | None]:
    where = _split(text)
    if where.scheme != _SCHEME or where.path not in ("", "/"):
        raise Failure(
            failure.INVALID_ARGUMENT,
            f"'{text}' is no URI of migration: vzmigr://[user@]host[:port of ssh]",
        )
    return where, where.port


def _peer(text: str | None) -> tuple[SplitResult, int | None]:
    if text is None:
        raise Failure(failure.INVALID_ARGUMENT, "Migration needs the URI of the other node")
    where = _split(text)
    scheme, _, transport = where.scheme.partition("+")
    if scheme not in ("vz", "parallels") or transport not in _TRANSPORTS:
        raise Failure(
            failure.INVALID_ARGUMENT, f"'{text}' is no URI of another node: vz+ssh://HOST/system"
        )
    return where, where.port if transport == "ssh" else None


def _split(text: str) -> SplitResult:
    try:
        where = urlsplit(text)
        _ = where.port
    except ValueError as error:
        raise Failure(failure.INVALID_ARGUMENT, f"'{text}' is no URI: {error}") from error
    return where


def _options(query: str) -> tuple[str, ...]:
    """Return the options of ssh in the last part of a URI; raises Failure (8)."""
    found: list[str] = []
    for key, values in parse_qs(query, keep_blank_values=True).items():
        value = values[-1]
        if key in ("keyfile", "known_hosts"):
            if not value.startswith("/") or any(each in '"\\%' or each < " " for each in value):
                raise Failure(failure.INVALID_ARGUMENT, f"{key}={value} is not an absolute path")
            option = "IdentityFile" if key == "keyfile" else "UserKnownHostsFile"
            found += ["-o", f'{option}="{value}"']
        elif key == "no_verify" and value in ("0", "1"):
            found += ["-o", "StrictHostKeyChecking=no"] if value == "1" else []
        elif key not in ("socket", "mode"):
            raise Failure(failure.INVALID_ARGUMENT, f"{key}={value} is not understood in a URI")
    return tuple(found)
