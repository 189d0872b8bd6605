"""Clients of other machines: TLS with certificates on both sides, and TCP without anything.

Off unless vz.conf says so (LIBVIRT_TLS, LIBVIRT_TCP).  Certificates are where libvirt's own daemon
has them:

<root>/etc/pki/CA/cacert.pem                    who has signed the clients' certificates
<root>/etc/pki/CA/cacrl.pem                     those that are void, when there is such a file
<root>/etc/pki/libvirt/servercert.pem           the node's own, and its key in
<root>/etc/pki/libvirt/private/serverkey.pem
"""

from __future__ import annotations

import ssl
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyvz.errors import ConfigError
from pyvz.model.endpoint import Endpoint, endpoint
from pyvz.model.vzconf import NodeConfig

TLS_PORT: Final = 16514
TCP_PORT: Final = 16509
EVERYWHERE: Final = "0.0.0.0"  # noqa: S104  certificates say who may
HANDSHAKE: Final = 20.0  # seconds
WELCOME: Final = b"\1"  # what a client of TLS waits for after the handshake


class Listener(NamedTuple):
    """Where to listen for the network; context: None without TLS."""

    place: Endpoint
    context: ssl.SSLContext | None


def listeners(config: NodeConfig, root: Path) -> list[Listener]:
    """Return what vz.conf asks for; raises BadValue, ConfigError naming what is missing."""
    found = []
    tls = endpoint("LIBVIRT_TLS", config.libvirt_tls, default=EVERYWHERE, port=TLS_PORT)
    if tls is not None:
        found.append(Listener(tls, _context(root / "etc/pki")))
    tcp = endpoint("LIBVIRT_TCP", config.libvirt_tcp, port=TCP_PORT)
    if tcp is not None:
        found.append(Listener(tcp, None))
    return found


def name_of(certificate: dict[str, Any] | None) -> str:
    """Return the common name of a certificate's subject, "" for none."""
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""


def allowed(config: NodeConfig, name: str) -> bool:
    """Whether the owner of a certificate may come in: any, or those that vz.conf lists."""
    patterns = config.libvirt_clients.split()
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _context(place: Path) -> ssl.SSLContext:
    authority, void = place / "CA/cacert.pem", place / "CA/cacrl.pem"
    own, key = place / "libvirt/servercert.pem", place / "libvirt/private/serverkey.pem"
    for file in (authority, own, key):
        if not file.is_file():
            raise ConfigError(
                f"LIBVIRT_TLS needs the file {file}", hint="docs/libvirt.md tells how to make it."
            )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    # A ticket that comes before the byte of welcome confuses libvirt's clients.
    context.num_tickets = 0
    try:
        context.load_verify_locations(authority)
        context.load_cert_chain(own, key)
        if void.is_file():
            context.load_verify_locations(void)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"The certificates in {place} cannot be used: {error}") from error
    return context
