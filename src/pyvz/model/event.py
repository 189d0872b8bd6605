"""Events: what happened to an environment or to the node, as `prlctl monitor` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

START = "ve-start"
STOP = "ve-stop"
REBOOT = "ve-reboot"
OOM = "ve-oom"  # the kernel killed processes of it for want of memory
LIMIT = "ve-limit"  # it was refused more of a resource than its limit
NO_LEASE = "ve-no-lease"  # a card of it has got no address by DHCP
CONFIG = "ve-config"
CREATE = "ve-create"
DELETE = "ve-delete"
REGISTER = "ve-register"
UNREGISTER = "ve-unregister"
RENAME = "ve-rename"
PAUSE = "ve-pause"
RESUME = "ve-resume"
MOUNT = "ve-mount"
UMOUNT = "ve-umount"
CLONE = "ve-clone"
MOVE = "ve-move"
METADATA = "ve-metadata"  # a title or XML of libvirt's clients; data: type, uri
VM_AGENT = "vm-agent"  # the guest's agent has come or gone; data: state
VM_TRAY = "vm-tray"  # the tray of a CD drive; data: device, state
VM_BLOCK_JOB = "vm-block-job"  # a copy of a disk; data: device, type, state
VM_BALLOON = "vm-balloon"  # the guest has another amount of memory; data: bytes
CRASH = "ve-crash"  # init ended in a way that nobody asked for
NODE_START = "node-start"
NODE_STOP = "node-stop"
# Of virtual networks and storage pools; data has their name, and their uuid where they have one.
NET_ADD = "net-add"
NET_SET = "net-set"
NET_DELETE = "net-delete"
NET_UP = "net-up"
NET_DOWN = "net-down"
POOL_ADD = "pool-add"
POOL_SET = "pool-set"
POOL_DELETE = "pool-delete"
POOL_START = "pool-start"
POOL_STOP = "pool-stop"
POOL_REFRESH = "pool-refresh"  # what is in it has changed

# What happens all the time: told to those who listen, and kept nowhere.
FLEETING = frozenset({VM_BALLOON})

_NOTHING: Mapping[str, object] = {}


class Event(NamedTuple):
    """One event.

    time: wall clock, seconds since the epoch.  name: one of the constants above.
    uuid: of the environment, or "" when it is about the node.  data: JSON values.
    """

    time: float
    name: str
    uuid: str = ""
    data: Mapping[str, object] = _NOTHING

    def as_json(self) -> dict[str, object]:
        """Return it as the API sends it."""
        return {"time": self.time, "name": self.name, "uuid": self.uuid, "data": dict(self.data)}
