"""DHCP and DNS of a virtual network: one dnsmasq(8) per network, and its configuration as text.

<lib>/networks/<uuid>.dnsmasq    configuration, made by us: changes by hand are lost
<lib>/networks/<uuid>.leases     leases; they survive a reboot of the node
<run>/networks/<uuid>.pid        written by dnsmasq

A dnsmasq outlives vzd: the next vzd finds it by its pid file, and knows it by its command line.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
from collections.abc import Sequence
from ipaddress import ip_interface
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import CommandFailed, NetworkError, Unsupported
from pyvz.linux import run
from pyvz.linux.file import write_atomic
from pyvz.linux.process import Pidfd, start_time
from pyvz.model.virtualnet import NetworkType, VirtualNetwork
from pyvz.store.paths import Paths

PROGRAM = "dnsmasq"
PACKAGE = "dnsmasq-base"
LEASE = "12h"

_PATIENCE = 5.0  # seconds until a dnsmasq that was told to end is killed
_START = 60.0  # seconds to read its configuration and go into the background


class Files(NamedTuple):
    """The files of one dnsmasq."""

    config: Path
    leases: Path
    pid: Path


def files(paths: Paths, uuid: str) -> Files:
    """Return the files of a network's dnsmasq."""
    lib, volatile = paths.lib / "networks", paths.run / "networks"
    return Files(lib / f"{uuid}.dnsmasq", lib / f"{uuid}.leases", volatile / f"{uuid}.pid")


def available() -> bool:
    """Whether the node has a dnsmasq."""
    return _program() is not None


def config(network: VirtualNetwork, places: Files, *, mtu: int = 0) -> str:
    """Return the configuration of a network's dnsmasq."""
    shared = network.type is NetworkType.SHARED
    lines = [
        f"# Virtual network {network.name}.  Made by vzd: change it with prlsrvctl net set.",
        f"interface={network.bridge}",
        "except-interface=lo",
        "bind-dynamic",
        "no-hosts",
        f"pid-file={places.pid}",
        f"dhcp-leasefile={places.leases}",
        "dhcp-authoritative",
        "dhcp-no-override",
        "quiet-dhcp",
        "quiet-dhcp6",
    ]
    # A host-only network has no names of the world: there dnsmasq answers DHCP only.
    lines += ["strict-order", "domain-needed", "bogus-priv"] if shared else ["port=0"]
    if network.ipv4.dhcp:
        lines += _ipv4(network, shared=shared)
    if network.ipv6.dhcp:
        lines += _ipv6(network, shared=shared)
    if mtu:
        lines.append(f"dhcp-option=option:mtu,{mtu}")
    return "\n".join(lines) + "\n"


def _ipv4(network: VirtualNetwork, *, shared: bool) -> list[str]:
    subnet = network.ipv4
    own = ip_interface(subnet.address)
    lines = [
        f"dhcp-range={subnet.first},{subnet.last},{own.network.netmask},{LEASE}",
        f"dhcp-lease-max={_size(subnet.first, subnet.last)}",
    ]
    if shared:
        lines += [f"dhcp-option=option:router,{own.ip}"]
        lines += [f"dhcp-option=option:dns-server,{subnet.server or own.ip}"]
    else:
        lines += ["dhcp-option=option:router", "dhcp-option=option:dns-server"]  # none
    return lines


def _ipv6(network: VirtualNetwork, *, shared: bool) -> list[str]:
    subnet = network.ipv6
    own = ip_interface(subnet.address)
    lines = [
        f"dhcp-range={subnet.first},{subnet.last},{own.network.prefixlen},{LEASE}",
        "enable-ra",
    ]
    if shared:
        lines.append(f"dhcp-option=option6:dns-server,[{subnet.server or own.ip}]")
    else:
        lines.append(f"ra-param={network.bridge},0,0")  # lifetime 0: we are nobody's router
    return lines


def _size(first: str, last: str) -> int:
    return int(ip_interface(last).ip) - int(ip_interface(first).ip) + 1


class Server:
    """The dnsmasq of one network."""

    def __init__(self, paths: Paths, uuid: str) -> None:
        self.files = files(paths, uuid)

    def running(self) -> int:
        """Return its pid, 0 when it does not run."""
        try:
            pid = int(self.files.pid.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return 0
        return pid if f"--conf-file={self.files.config}".encode() in words else 0

    def ensure(self, text: str) -> None:
        """Let it run with exactly this configuration; a running one that has it goes on.

        Raises Unsupported (no dnsmasq), NetworkError (it would not start).
        """
        program = _program()
        if program is None:
            raise Unsupported(
                "The program dnsmasq is not installed, so the node has no DHCP server",
                hint=f"Install the package {PACKAGE}, or use --dhcp-server off.",
            )
        if self.running() and self._has(text):
            return
        self.stop()
        for place in self.files:
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(self.files.config, text, 0o644)
        self._start(program)
        write_atomic(self._stamp, _digest(text), 0o644)

    def stop(self) -> None:
        """End it; idempotent."""
        pid = self.running()
        if pid:
            _end(pid)
        self.files.pid.unlink(missing_ok=True)
        self._stamp.unlink(missing_ok=True)

    def forget(self) -> None:
        """End it and remove its files; idempotent."""
        self.stop()
        for place in self.files:
            place.unlink(missing_ok=True)

    @property
    def _stamp(self) -> Path:
        return self.files.pid.with_suffix(".config")

    def _has(self, text: str) -> bool:
        """Whether the one that runs was started with this configuration."""
        try:
            return self._stamp.read_text() == _digest(text)
        except OSError:
            return False

    def _start(self, program: str) -> None:
        # It reads its configuration, binds, and only then goes into the background (dnsmasq(8)).
        try:
            run.run([program, f"--conf-file={self.files.config}"], timeout=_START)
        except CommandFailed as error:
            raise NetworkError(
                "The DHCP server of the network does not start", details=error.details
            ) from error


def _end(pid: int) -> None:
    try:
        with Pidfd(pid, start_time(pid)) as process:
            process.signal(signal.SIGTERM)
            if not process.wait(_PATIENCE):
                process.signal(signal.SIGKILL)
                process.wait(_PATIENCE)
    except ProcessLookupError:
        return


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _program() -> str | None:
    return shutil.which(PROGRAM, path=run.ENVIRONMENT["PATH"])


class Lease(NamedTuple):
    """One lease.  expires: seconds since the epoch, 0 never.  mac: or, of IPv6, the IAID."""

    expires: int
    mac: str
    address: str
    hostname: str
    client: str


def leases(places: Files) -> Sequence[Lease]:
    """Return every lease, of both families (the file is dnsmasq's; "*" stands for nothing)."""
    try:
        lines = places.leases.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    rows = [["" if word == "*" else word for word in line.split()] for line in lines]
    return tuple(
        Lease(int(row[0]), *row[1:5]) for row in rows if len(row) >= 5 and row[0].isdigit()
    )


def orphans(paths: Paths, known: set[str]) -> list[str]:
    """Return the uuids of networks that are no more and have a dnsmasq or its files."""
    found: set[str] = set()
    for folder in (paths.lib / "networks", paths.run / "networks"):
        if folder.is_dir():
            found |= {path.stem for path in folder.iterdir()}
    return sorted(found - known)
