r"""Virtual networks of the node, in files that an administrator can read and write.

    <etc>/networks/<name>.conf

        UUID="6f1c..."                 identity; the bridge's hardware address comes from it
        TYPE="shared"                  bridged, host-only, shared
        BRIDGE="virbr1"                name of the bridge; ADOPTED="yes": not made by us
        IFNAME="eth0" MAC="..."        the card of a bridged network; FORCE="yes": its addresses
                                       move to the bridge
        IP="10.37.131.1/24" DHCP="yes" DHCP_IP="..." IP_SCOPE_START="..." IP_SCOPE_END="..."
        IP6="..." DHCP6="no" DHCP6_IP="..." IP6_SCOPE_START="..." IP6_SCOPE_END="..."
        VLAN="100"  VXLAN="42"  REMOTES="192.0.2.2 192.0.2.3"
        NAT_TCP="web,10.37.131.10,8080,80"  NAT_UDP="..."
        AUTOSTART="no"                 it comes up when it is used, not with vzd

Keys that we do not know stay in the file.  Files are written whole under `<etc>/networks/.lock`,
readers take no lock.  The networks `Bridged` and `Host-Only` are there without a file too: they
get one when they are first used or changed.  One that was deleted has a file with DELETED="yes".
"""

from __future__ import annotations

import contextlib
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path

from pyvz.errors import BadValue, ConfigError, NotFound, UsageError
from pyvz.linux import file
from pyvz.model.conffile import ConfFile
from pyvz.model.virtualnet import (
    NetworkType,
    PortForward,
    VirtualNetwork,
    check,
    check_name,
    configured,
    parse_forward,
)
from pyvz.store import nodeconf
from pyvz.store.paths import Paths

BRIDGED = "Bridged"
HOST_ONLY = "Host-Only"
BUILTIN = (BRIDGED, HOST_ONLY)
LOCK_TIMEOUT = 30.0  # seconds that a change waits for another one

_SUFFIX = ".conf"
_NAMESPACE = uuids.UUID("3cf85e2c-9d2f-4f6e-a2d1-d0e3d8f3a7b1")  # of identities without a file


class Networks:
    """The virtual networks of one node, read from their files at every call."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._directory = paths.etc / "networks"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the networks of the node for a change."""
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with file.flock(self._directory / ".lock", timeout=LOCK_TIMEOUT):
            yield

    def stored(self) -> list[VirtualNetwork]:
        """Return those that have a file, by name; one that is damaged is left out (`problems`)."""
        return self._read_all()[0]

    def problems(self) -> list[tuple[str, str]]:
        """Return (name, what is wrong) of the files that cannot be understood."""
        return self._read_all()[1]

    def without_file(self) -> list[str]:
        """Return the names of the two networks of every node, as far as they have no file."""
        return [name for name in BUILTIN if not self.path(name).exists()]

    def get(self, name: str) -> VirtualNetwork:
        """Return one that has a file; raises NotFound, ConfigError."""
        found = self._read(check_name(name)) if self.path(name).exists() else None
        if found is None:
            raise NotFound(f"The Virtual Network {name} does not exist.")
        return found

    def save(self, network: VirtualNetwork) -> None:
        """Write a network, over its file when there is one."""
        path = self.path(check_name(network.name))
        conf = nodeconf.read_conf(path) if path.exists() else ConfFile.parse("")
        if conf.get("DELETED"):
            conf = ConfFile.parse("")
        for key, value in _written(network).items():
            conf.set(key, value or None)
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        file.write_atomic(path, conf.render())

    def remove(self, name: str) -> None:
        """Forget a network; idempotent."""
        path = self.path(check_name(name))
        if name in BUILTIN:
            file.write_atomic(path, 'DELETED="yes"\n')
        else:
            path.unlink(missing_ok=True)
            if self._directory.is_dir():
                file.fsync_directory(self._directory)

    def path(self, name: str) -> Path:
        """Return the file of a network."""
        return self._directory / f"{name}{_SUFFIX}"

    def identity(self, name: str) -> str:
        """Return the identity of a network that has no file yet: always the same on this node."""
        return str(uuids.uuid5(_NAMESPACE, f"{self._paths.instance}/{name}"))

    def _read_all(self) -> tuple[list[VirtualNetwork], list[tuple[str, str]]]:
        found: list[VirtualNetwork] = []
        problems: list[tuple[str, str]] = []
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            try:
                network = self._read(check_name(path.stem))
            except (ConfigError, BadValue) as error:
                problems.append((path.stem, error.message))
                continue
            if network is not None:
                found.append(network)
        return found, problems

    def _read(self, name: str) -> VirtualNetwork | None:
        """Return what a file says; None when it says that the network is deleted, or is gone."""
        path = self.path(name)
        try:
            conf = nodeconf.read_conf(path)
        except ConfigError:
            if not path.exists():
                return None
            raise
        if conf.get("DELETED") == "yes":
            return None
        try:
            return check(_parsed(name, conf.values(), self.identity(name)))
        except UsageError as error:
            raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error


def _parsed(name: str, values: dict[str, str], identity: str) -> VirtualNetwork:
    """Return the network of a file's values; raises BadValue, UsageError."""
    network = VirtualNetwork(name, values.get("UUID") or identity, NetworkType.HOST_ONLY)
    settings = [(option, values[key]) for key, option in _KEYS.items() if values.get(key)]
    settings += [("remote", text) for text in values.get("REMOTES", "").split()]
    network = configured(network, settings)
    return network._replace(
        adopted=values.get("ADOPTED") == "yes",
        autostart=values.get("AUTOSTART") != "no",
        forwards=(*_forwards("tcp", values), *_forwards("udp", values)),
    )


def _forwards(protocol: str, values: dict[str, str]) -> tuple[PortForward, ...]:
    words = values.get(f"NAT_{protocol.upper()}", "").split()
    return tuple(parse_forward(protocol, word) for word in words)


def _written(network: VirtualNetwork) -> dict[str, str]:
    """Return key -> text of a network's file."""
    made = {
        "UUID": network.uuid,
        "TYPE": network.type.value,
        "DESCRIPTION": network.description,
        "BRIDGE": network.bridge,
        "ADOPTED": _yes(network.adopted),
        "IFNAME": network.interface,
        "MAC": network.mac,
        "FORCE": _yes(network.force),
        "VLAN": str(network.vlan or ""),
        "VXLAN": str(network.vxlan or ""),
        "REMOTES": " ".join(network.remotes),
        "IP": network.ipv4.address,
        "DHCP": _yes(network.ipv4.dhcp),
        "DHCP_IP": network.ipv4.server,
        "IP_SCOPE_START": network.ipv4.first,
        "IP_SCOPE_END": network.ipv4.last,
        "IP6": network.ipv6.address,
        "DHCP6": _yes(network.ipv6.dhcp),
        "DHCP6_IP": network.ipv6.server,
        "IP6_SCOPE_START": network.ipv6.first,
        "IP6_SCOPE_END": network.ipv6.last,
        "AUTOSTART": "" if network.autostart else "no",
    }
    for protocol in ("tcp", "udp"):
        rules = [each.text for each in network.forwards if each.protocol == protocol]
        made[f"NAT_{protocol.upper()}"] = " ".join(rules)
    return made


def _yes(value: bool) -> str:  # noqa: FBT001
    return "yes" if value else ""


# The keys of a file that are options of `prlsrvctl net set` too, in the order in which they count.
_KEYS = {
    "TYPE": "type",
    "DESCRIPTION": "description",
    "BRIDGE": "bridge",
    "IFNAME": "ifname",
    "MAC": "mac",
    "FORCE": "force",
    "VLAN": "vlan",
    "VXLAN": "vxlan",
    "IP": "ip",
    "DHCP": "dhcp-server",
    "DHCP_IP": "dhcp-ip",
    "IP_SCOPE_START": "ip-scope-start",
    "IP_SCOPE_END": "ip-scope-end",
    "IP6": "ip6",
    "DHCP6": "dhcp6-server",
    "DHCP6_IP": "dhcp-ip6",
    "IP6_SCOPE_START": "ip6-scope-start",
    "IP6_SCOPE_END": "ip6-scope-end",
}
