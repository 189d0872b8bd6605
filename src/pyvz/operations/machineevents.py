"""What happens to a virtual machine by itself: a crash of its guest, a full disk, a reboot."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from pyvz.errors import VZError
from pyvz.model import event as names
from pyvz.model.environment import Environment
from pyvz.operations import machinedrives
from pyvz.operations.machinetold import Reminder
from pyvz.operations.node import Node
from pyvz.vm.monitor import Event

log = logging.getLogger(__name__)

AGENT = "agent0"  # the port of the agent (vm/commandline.py)
DEVICE = "device-"  # before the name of a drive: its device
# Before the name of a disk: jobs (vm/mirror.py, vm/push.py, vm/blockjob.py)
COPIED = ("mirror-", "push-", "stream-", "copy-")
_BLOCK_JOBS = {
    "BLOCK_JOB_COMPLETED": "completed", "BLOCK_JOB_CANCELLED": "cancelled",
    "BLOCK_JOB_READY": "ready",
}  # fmt: skip
ONE_RESET = 5.0  # seconds within which resets are one
CRASHED = "guest-panicked"  # QEMU's word for one that stands still after it
ENOUGH = 256 << 20  # bytes of free space with which a machine that ran out of it goes on


class Listener:
    """Takes note of events; a guest that resets its machine does so several times in a row."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._reset: dict[str, float] = {}
        self._remind = Reminder(node)

    def __call__(self, uuid: str, event: Event) -> None:
        """Take note of one event of QEMU."""
        try:
            env = self._node.registry.resolve(uuid)
        except VZError:
            return
        if event["event"] == "RESET":
            last, self._reset[uuid] = self._reset.get(uuid, -math.inf), time.monotonic()
            if event.get("data", {}).get("guest") and time.monotonic() - last > ONE_RESET:
                self._node.publish("ve-reboot", env)
            return
        _happened(self._node, env, event)
        if _agent_appears(event):
            self._remind(env)


def _happened(node: Node, env: Environment, event: Event) -> None:
    name, data = event["event"], event.get("data", {})
    if name == "BLOCK_IO_ERROR" and data.get("action") == "stop":
        reason = "no-space" if data.get("nospace") else "error"
        log.warning(
            "%s: stopped by an I/O error of %s: %s", env.name, data.get("node-name"), reason
        )
        node.publish("vm-io-error", env, device=str(data.get("node-name", "")), reason=reason)
    elif name == "GUEST_PANICKED":
        log.warning("%s: its guest has crashed", env.name)
        node.publish("vm-crash", env)
    elif name == "STOP" and node.machines.state(env.uuid) == CRASHED:
        _crashed(node, env)
    else:
        told = _told(name, data)
        if told:
            node.publish(told.name, env, **told.data)


def _agent_appears(event: Event) -> bool:
    data = event.get("data", {})
    ours = event["event"] == "VSERPORT_CHANGE" and data.get("id") == AGENT
    return bool(ours and data.get("open"))


class _Told(NamedTuple):
    """An event of ours, made of one of QEMU's."""

    name: str
    data: dict[str, str]


def _told(name: str, data: Mapping[str, Any]) -> _Told | None:
    """Return what the node is told of an event (qapi/*.json of QEMU); None: nothing."""
    if name == "VSERPORT_CHANGE" and data.get("id") == AGENT:
        state = "connected" if data.get("open") else "disconnected"
        return _Told(names.VM_AGENT, {"state": state})
    if name == "DEVICE_TRAY_MOVED":
        device = str(data.get("id", "")).removeprefix(DEVICE)
        state = "open" if data.get("tray-open") else "closed"
        return _Told(names.VM_TRAY, {"device": device, "state": state})
    if name == "BALLOON_CHANGE":
        return _Told(names.VM_BALLOON, {"bytes": str(data.get("actual", 0))})
    if name in _BLOCK_JOBS:
        state = "failed" if data.get("error") else _BLOCK_JOBS[name]
        device = str(data.get("device", ""))
        for prefix in COPIED:
            device = device.removeprefix(prefix)
        kind = str(data.get("type", ""))
        return _Told(names.VM_BLOCK_JOB, {"device": device, "type": kind, "state": state})
    return None


def look(node: Node) -> bool:
    """Look after every machine that has stopped by itself; returns whether any machine runs."""
    running = node.machines.running()
    for uuid in running:
        with suppress(VZError):
            state = node.machines.state(uuid)
            if state in {"io-error", CRASHED}:
                env = node.registry.resolve(uuid)
                _go_on(node, env) if state == "io-error" else _crashed(node, env)
    return bool(running)


def _go_on(node: Node, env: Environment) -> None:
    """Let a machine go on whose disk had no space, once there is some."""
    drives = node.registry.config(env).machine.drives
    for drive in drives:
        if drive.is_disk and drive.image:
            free = os.statvfs(machinedrives.source_of(env, drive).parent)
            if free.f_bavail * free.f_frsize < ENOUGH:
                return
    log.info("%s: there is space again: it goes on", env.name)
    node.machines.monitor(env.uuid).execute("cont")
    node.publish("ve-resume", env)


def _crashed(node: Node, env: Environment) -> None:
    """Do what --on-crash says: restart, or leave it stopped for someone to look at."""
    if node.registry.config(env).machine.on_crash != "restart":
        return
    monitor = node.machines.monitor(env.uuid)
    if monitor.state != CRASHED:
        return
    monitor.execute("system_reset")
    monitor.execute("cont")
    node.publish("ve-reboot", env)
