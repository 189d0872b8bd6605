"""What a container's configuration says about the guest's own files, written from outside.

Everything goes through GuestRoot: a guest's symbolic link never leads out of its root.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from pyvz.container.runtime import ExecRequest
from pyvz.errors import SetError, Timeout, VZError
from pyvz.linux.file import read_text_limited
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.network.guest import base, names
from pyvz.operations.node import Node
from pyvz.operations.program import finish

# The states of systemctl(1) is-system-running in which nothing is waited for any more.
_BOOTED = frozenset({"running", "degraded", "maintenance", "stopping"})

log = logging.getLogger(__name__)

RESOLV_CONF = Path("/etc/resolv.conf")


def write(node: Node, guest: GuestRoot, env: Environment, config: Config) -> None:
    """Write names, resolver and interfaces into the guest, where the configuration names them.

    A guest whose files are broken or hostile starts all the same: what could not be written is
    told in the log.  The addresses themselves are put in place from outside.
    """
    mask = node.config().values.get("USE_VENET_MASK", "no").lower() == "yes"
    network = base.from_config(config, node_nameservers=_inherited(config), mask=mask)
    problems = list(base.write(guest, network))
    try:
        names.write(guest, network)
    except (OSError, VZError) as error:
        problems.append(f"names of the guest: {error}")
    for problem in problems:
        log.warning("%s: %s", env.name, problem)


def write_running(node: Node, env: Environment, config: Config) -> None:
    """Write the settings into a container that runs, through its root on the node."""
    with GuestRoot.open(node.root(env, config)) as guest:
        write(node, guest, env, config)


def _inherited(config: Config) -> tuple[str, ...]:
    """Return the node's own DNS servers for NAMESERVER=inherit; a stub on loopback is left out."""
    if config.network.nameservers != ("inherit",):
        return ()
    lines = [line.split() for line in read_text_limited(RESOLV_CONF).splitlines()]
    servers = [line[1] for line in lines if line[:1] == ["nameserver"] and len(line) > 1]
    return tuple(x for x in servers if not x.startswith("127.") and x != "::1" and "%" not in x)


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
    ended = finish(node.runtime.exec(env.uuid, request), timeout=60.0)
    if ended.code != 0:
        raise SetError(f"{env.name} refused the host name '{hostname}'", details=ended.output)
