"""Has a running guest take what `set` has changed of its host name, addresses, name servers, keys.

A machine from a template reads these files at each boot, from what QEMU was started with
(machinefiles.py).  While it runs its agent unpacks fresh ones.  Then a mark in the machine's run
directory says that QEMU's are out of date: whenever the agent appears again, after a boot that QEMU
has survived, the guest is told anew.  Of any other guest the host name alone is set.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Final

from pyvz.errors import VZError
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.operations import machinefiles, machineguest
from pyvz.operations.node import Node

log = logging.getLogger(__name__)

FIELDS: Final = frozenset(
    {
        *("network.hostname", "network.nameservers", "network.searchdomains"),
        *("network.interfaces", "machine.ssh_keys"),
    }
)
_PATIENCE: Final = 5.0  # seconds for the agent to say that it is there
_TIMEOUT: Final = 60.0  # seconds for what it does then
_TRIES, _PAUSE = 12, 5.0  # times, and seconds between them
_OTHER: Final = 3  # exit status: nothing that we know how to tell
_SCRIPT: Final = f"""
if [ -x /usr/sbin/pyvz-guest ]; then
    rm -f /etc/systemd/network/50-pyvz-*.network
    base64 -d | tar -xzo -C / && hostname -F /etc/hostname || exit 1
    if command -v networkctl >/dev/null; then networkctl reload; fi
elif [ -n "$1" ]; then
    hostnamectl set-hostname "$1" 2>/dev/null || {{ echo "$1" >/etc/hostname && hostname "$1"; }}
else
    exit {_OTHER}
fi
"""


def tell(node: Node, env: Environment, old: Config, new: Config) -> frozenset[str]:
    """Have the guest take what is different; return the fields that are in force inside.

    Nothing is raised: what it does not take now it gets at its next boot.
    """
    changed = frozenset(each for each in FIELDS if old.get(each) != new.get(each))
    if not changed or node.machines.connected(env.uuid) is None:
        return frozenset()
    known = bool(new.template.os)
    if known:
        _mark(node, env.uuid).touch()
    wanted = changed if known else changed & {"network.hostname"}
    if not wanted:
        return frozenset()
    return wanted if _told(node, env, new, name="network.hostname" in changed) else frozenset()


def _told(node: Node, env: Environment, config: Config, *, name: bool) -> bool:
    """Have its agent do it; whether it did."""
    argv = ["/bin/sh", "-c", _SCRIPT, "sh", (config.network.hostname or "") if name else ""]
    data = machinefiles.payload(env.name, config).encode()
    try:
        with machineguest.agent(node, env, patience=_PATIENCE) as talk:
            ended = talk.run(argv, data=data, timeout=_TIMEOUT)
    except VZError as error:
        log.info("%s: it was not told of its new settings: %s", env.name, error)
        return False
    if ended.status not in {0, _OTHER}:
        said = ended.stderr[:500].decode("utf-8", "replace")
        log.warning("%s: it did not take its new settings: %r", env.name, said)
    return ended.status == 0


class Reminder:
    """Tells a guest again whose agent has appeared; one thread for each machine at most."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._guard = threading.Lock()
        self._under_way: set[str] = set()

    def __call__(self, env: Environment) -> None:
        """Begin to tell it, where what QEMU was started with is out of date."""
        if not _mark(self._node, env.uuid).exists():
            return
        with self._guard:
            if env.uuid in self._under_way:
                return
            self._under_way.add(env.uuid)
        words = (env,)
        threading.Thread(target=self._run, args=words, name="guest told", daemon=True).start()

    def _run(self, env: Environment) -> None:
        try:
            # Others may be talking to the agent just then, or it has only begun.
            for _ in range(_TRIES):
                if _told(self._node, env, self._node.registry.config(env), name=False):
                    break
                time.sleep(_PAUSE)
        except (VZError, OSError):
            log.exception("%s: it was not told of its settings", env.name)
        finally:
            with self._guard:
                self._under_way.discard(env.uuid)


def _mark(node: Node, uuid: str) -> Path:
    return node.machines.directory(uuid) / "told-later"
