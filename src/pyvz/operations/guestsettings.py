"""What a container's configuration says about the guest's own files, written from outside.

Everything goes through GuestRoot: a guest's symbolic link never leads out of its root.
"""

from __future__ import annotations

import time

from pyvz.container.runtime import ExecRequest
from pyvz.errors import SetError, Timeout, VZError
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.operations.node import Node
from pyvz.operations.program import finish

# The states of systemctl(1) is-system-running in which nothing is waited for any more.
_BOOTED = frozenset({"running", "degraded", "maintenance", "stopping"})


def write(guest: GuestRoot, env: Environment, config: Config) -> None:
    """Write hostname and resolver into the guest, where the configuration names them."""
    _ = env
    if config.network.hostname:
        _write_changed(guest, "etc/hostname", config.network.hostname + "\n")
    resolver = resolver_text(config)
    if resolver:
        _write_changed(guest, "etc/resolv.conf", resolver)


def write_running(node: Node, env: Environment, config: Config) -> None:
    """Write the settings into a container that runs, through its root on the node."""
    with GuestRoot.open(node.root(env, config)) as guest:
        write(guest, env, config)


def resolver_text(config: Config) -> str:
    """Return resolv.conf(5) as NAMESERVER and SEARCHDOMAIN say; empty when neither is set."""
    lines = []
    if config.network.searchdomains:
        lines.append("search " + " ".join(config.network.searchdomains))
    lines += [f"nameserver {address}" for address in config.network.nameservers]
    return "".join(line + "\n" for line in lines)


def wait_booted(node: Node, env: Environment, *, timeout: float) -> None:
    """Wait until the guest's systemd says that the boot is over; raises Timeout.

    A guest without systemd has no such word; there nothing is waited for.
    """
    deadline = time.monotonic() + timeout
    request = ExecRequest(argv=("systemctl", "is-system-running", "--wait"))
    while True:
        left = max(0.1, deadline - time.monotonic())
        ended = finish(node.runtime.exec(env.uuid, request), timeout=left)
        words = ended.output.split()
        if ended.code in {126, 127} or (words and words[-1] in _BOOTED):
            return
        # systemd's own socket is not there yet, or the manager is only just being reached.
        if time.monotonic() > deadline:
            raise Timeout(f"{env.name} has not finished booting in {timeout:.0f} seconds")
        time.sleep(0.1)


def set_hostname_live(node: Node, env: Environment, hostname: str) -> None:
    """Give the running container its new host name."""
    request = ExecRequest(argv=("hostname", hostname))
    ended = finish(node.runtime.exec(env.uuid, request), timeout=10.0)
    if ended.code != 0:
        raise SetError(f"{env.name} refused the host name '{hostname}'", details=ended.output)


def _write_changed(guest: GuestRoot, path: str, text: str) -> None:
    try:
        if guest.read(path).decode(errors="replace") == text:
            return
    except (OSError, VZError):
        pass
    guest.write(path, text.encode())
