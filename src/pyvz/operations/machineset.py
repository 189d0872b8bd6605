"""`set` for a virtual machine: plan, check, put in force, save, as configure.py does it.

What QEMU can change while it runs is changed; the rest waits for the next start, and the caller is
told so.  When a step fails, what was put in force is taken back and nothing is saved.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, suppress
from typing import NamedTuple

from pyvz.errors import BadValue, SetError, UsageError, VZError
from pyvz.model import params
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.model.limits import Limits
from pyvz.model.status import Status
from pyvz.operations import (
    backuplease,
    cloudpassword,
    devicechange,
    machine,
    machineclone,
    machinedisk,
    machinedrives,
    machineground,
    machineguest,
    machinekeys,
    machinelimits,
    machinenet,
    machineoptions,
    machinepci,
    machinepending,
    machineplug,
    machinestate,
    machinetold,
    machineusb,
    memory,
    vncpassword,
)
from pyvz.operations.machinedisk import Changes
from pyvz.operations.machineoptions import MachinePlan
from pyvz.operations.node import Node
from pyvz.operations.options import GivenOptions
from pyvz.storage import bundle
from pyvz.vm import firmware, hugepages, image, plug
from pyvz.vm.monitor import Monitor
from pyvz.vm.spec import Layout, cpus_of, from_config, memory_of

log = logging.getLogger(__name__)

DIMM = 128  # MiB: Linux takes memory in blocks of this size
# What a guest of a template is told at its boot (machinefiles.py).
_AT_BOOT = machinetold.FIELDS - {"network.interfaces"}
_DEVICES = frozenset(
    f"machine.{each}"
    for each in ("drives", "serials", "usb", "usb_devices", "pci_devices", "sound")
)
_AT_ONCE = frozenset(
    {
        *("machine.drives", "machine.on_crash", "machine.tools_update", "machine.autostart_delay"),
        *("machine.usb_devices",),
        *("identity.name", "network.interfaces", "network.ip"),
    }
)


class Done(NamedTuple):
    """What was set: as SetResult of configure.py."""

    echo: tuple[str, ...]
    restart_needed: tuple[str, ...]
    warnings: tuple[str, ...]


class _Live(NamedTuple):
    """A machine that runs, and how its configuration changes."""

    node: Node
    env: Environment
    old: Config
    new: Config
    monitor: Monitor


def set_options(node: Node, env: Environment, dialect: str, given: GivenOptions) -> Done:
    """Change a machine as the options say; raises UsageError, BadValue, SetError, ..."""
    with node.lease(env, "set"):
        machine.repair(node, env)
        old = node.registry.config(env)
        base = _with_sample(node, old, given)
        given = machinenet.with_addresses(node, base, given)
        made = machineoptions.plan(base, dialect, given)
        status = node.status(env)
        running = status in {Status.RUNNING, Status.PAUSED}
        if status == Status.SUSPENDED:
            machinepending.check_suspended(env, old, made.config)
        if made.password is not None and not running and not made.config.machine.cloud_init:
            raise UsageError(
                f"{env.name} must run to have a password set inside",
                hint="Start it: its agent sets it.  Of a stopped one only cloud-init can.",
            )
        if running and old.machine.secure_boot != made.config.machine.secure_boot:
            raise UsageError(f"{env.name} must be stopped to turn secure boot on or off")
        _check_backup(node, env, old, made.config)
        machineusb.check(old, made.config)
        machinepci.check(old, made.config)
        new = machinenet.settled(node, env, made.config)
        if old.identity.type == "template" and new.identity.type != "template":
            machineclone.check_unused(node, env)
        waiting, warnings = _change(node, env, old, made._replace(config=new), running=running)
    devices = devicechange.told(old, new)
    node.publish("ve-config", env, fields=" ".join(made.fields), **devices)
    return Done(made.echo, waiting, (*made.warnings, *warnings))


def _check_backup(node: Node, env: Environment, old: Config, new: Config) -> None:
    """Refuse to touch disks that a backup reads; raises Locked."""
    kept = {drive.name: drive for drive in new.machine.drives}
    if any(each.is_disk and kept.get(each.name) != each for each in old.machine.drives):
        backuplease.refuse(node, env)


def _with_sample(node: Node, config: Config, given: GivenOptions) -> Config:
    for name, text in given:
        if name.replace("_", "-") == "applyconfig":
            sample = Config.parse(node.registry.sample(text or "").values(), f"ve-{text}")
            rows = [row for row in params.PARAMS if not row.local and sample.is_set(row.field)]
            config = config.changed({row.field: sample.get(row.field) for row in rows})
    return config


def _change(
    node: Node, env: Environment, old: Config, made: MachinePlan, *, running: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put it in force and save it; return the options that wait, and warnings."""
    waiting: set[str] = set()
    with (
        machinedisk.settled(node, env, old, made.config, made.flags) as (new, changes),
        ExitStack() as undo,
    ):
        if not running:
            machinenet.check(node, env, old, new, undo)
        if running:
            live = _Live(node, env, old, new, node.machines.monitor(env.uuid))
            waiting |= _put_in_force(live, changes, undo)
        elif changes.grown:
            _grow_stopped(node, env, changes)
        _secret(node, env, new, made, running=running)
        if made.password is not None and running:
            machineguest.set_password(node, env, made.password)
        elif made.password is not None:
            cloudpassword.keep(env, made.password)
        if old.machine.secure_boot != new.machine.secure_boot:
            # Its keys are variables: it begins with those that the other firmware begins with.
            (env.home / firmware.VARIABLES).unlink(missing_ok=True)
        save(node, env, old, new)
        undo.pop_all()
    if machinestate.path(env).exists():
        machinepending.note_saved(env, old, new)
    elif running:
        machinepending.note(node, env, (old, new), node.machines.monitor(env.uuid))
        waiting -= machinetold.tell(node, env, old, new)
    rows = [params.by_field(field) for field in dict.fromkeys(made.fields) if field in waiting]
    late = [row.options["prlctl"][0].name for row in rows if row.options.get("prlctl")]
    late += ["device"] if waiting & _DEVICES else []
    return tuple(late), ()


def _put_in_force(live: _Live, changes: Changes, undo: ExitStack) -> set[str]:
    """Change the running machine; return the fields that wait for the next start."""
    waiting = {
        row.field
        for row in params.PARAMS
        if live.new.get(row.field) != live.old.get(row.field)
        and not row.live
        and row.field not in _AT_ONCE
    }
    waiting |= {field for field in _AT_BOOT if live.new.get(field) != live.old.get(field)}
    memory.change(live.node, live.env, live.old, live.new, undo)
    _limits(live, undo)
    if _cpus(live, undo):
        waiting.add("cpu.cpus")
    if _memory(live, undo):
        waiting.add("memory.physpages")
    if _drives(live, changes, undo):
        waiting.add("machine.drives")
    configs = (live.old, live.new)
    if machineusb.change(live.node, live.env, configs, live.monitor, undo):
        waiting.add("machine.usb_devices")
    machinenet.change(live.node, live.env, configs, live.monitor, undo)
    return waiting


def _limits(live: _Live, undo: ExitStack) -> None:
    cpus = os.cpu_count() or 1

    def of(config: Config) -> Limits:
        spec = from_config(live.env.uuid, live.env.name, config, cpus=cpus, accelerator="tcg")
        return machinelimits.of(config, spec, cpus=cpus)

    before, after = of(live.old), of(live.new)
    changed = Limits._make(b if a != b else None for a, b in zip(before, after, strict=True))
    back = Limits._make(a if a != b else None for a, b in zip(before, after, strict=True))
    if changed == Limits():
        return
    with ExitStack() as opened:
        disks = machinedrives.open_all(live.env, live.old, opened).disks
    undo.callback(_apply_quietly, live.node, live.env, back, disks)
    try:
        live.node.cgroups.apply(live.env.uuid, changed, disks)
    except OSError as error:
        raise SetError(f"The kernel refused the new limits: {error.strerror}") from error


def _apply_quietly(
    node: Node, env: Environment, limits: Limits, disks: tuple[tuple[int, int], ...]
) -> None:
    try:
        node.cgroups.apply(env.uuid, limits, disks)
    except (OSError, VZError):
        log.exception("%s: the old limits could not be put back", env.name)


def _cpus(live: _Live, undo: ExitStack) -> bool:
    """Plug CPUs in; True: the change waits for the next start."""
    wanted = cpus_of(live.new)
    if wanted == cpus_of(live.old):
        return False
    made = machineground.layout(live.node, live.env)
    there = made.cpus + made.plugged
    if wanted < there or not live.old.machine.cpu_hotplug:
        return True
    undo.callback(machineground.note_layout, live.node, live.env, made)
    plug.add_cpus(live.monitor, wanted)
    machineground.note_layout(live.node, live.env, made._replace(plugged=wanted - made.cpus))
    return False


def _memory(live: _Live, undo: ExitStack) -> bool:
    """Plug memory in, or let the balloon take some; True: it waits for the next start."""
    wanted, before = memory_of(live.new), memory_of(live.old)
    if wanted == before:
        return False
    made = machineground.layout(live.node, live.env)
    there = made.memory + sum(made.dimms)
    if wanted > there:
        if not live.old.machine.mem_hotplug or _dimm(made, wanted) + there > made.max_memory:
            return True
        size = _dimm(made, wanted)
        if made.hugepages:
            hugepages.check(size)
        undo.callback(machineground.note_layout, live.node, live.env, made)
        plug.add_memory(live.monitor, len(made.dimms), size, hugepages=made.hugepages)
        machineground.note_layout(live.node, live.env, made._replace(dimms=(*made.dimms, size)))
    undo.callback(_balloon_quietly, live.monitor, before)
    plug.balloon(live.monitor, wanted)
    return False


def _dimm(made: Layout, wanted: int) -> int:
    missing = wanted - made.memory - sum(made.dimms)
    return -(-missing // DIMM) * DIMM


def _balloon_quietly(monitor: Monitor, size: int) -> None:
    with suppress(VZError):
        plug.balloon(monitor, size)


def _drives(live: _Live, changes: Changes, undo: ExitStack) -> bool:
    """Plug drives in and out, grow them, change discs; True: something waits."""
    waits = False
    there = plug.devices(live.monitor) if changes.removed else frozenset()
    for drive in changes.removed:
        if drive.enabled and drive.name in there:
            machineplug.take_out(live.env, live.monitor, drive)
            undo.callback(_quietly, live, drive)
    for drive in changes.added:
        waits |= drive.enabled and not _plug(live, drive, undo)
    for old, new in changes.changed:
        waits |= _change_drive(live, old, new, undo)
    for drive, wanted in changes.grown:
        size = wanted
        if drive.enabled:
            if drive.format == machinedrives.BUNDLE:
                size = bundle.grow(machinedrives.source_of(live.env, drive), size)
            live.monitor.execute("block_resize", {"node-name": drive.name, "size": size})
        else:
            _grow_stopped(live.node, live.env, Changes(grown=((drive, size),)))
    return waits


def _plug(live: _Live, drive: Drive, undo: ExitStack) -> bool:
    """Plug a drive in; False: its bus cannot while it runs."""
    if drive.iface not in machineplug.HOT:
        return False
    machineplug.plug_in(live.node, live.env, live.monitor, drive, live.new.machine.chipset)
    undo.callback(_unplug_quietly, live, drive)
    return True


def _unplug_quietly(live: _Live, drive: Drive) -> None:
    try:
        machineplug.take_out(live.env, live.monitor, drive)
    except VZError:
        log.exception("%s: %s could not be taken out again", live.env.name, drive.name)


def _quietly(live: _Live, drive: Drive) -> None:
    with ExitStack() as ignored:
        try:
            _plug(live, drive, ignored)
        except VZError:
            log.exception("%s: %s could not be plugged in again", live.env.name, drive.name)
        ignored.pop_all()


def _change_drive(live: _Live, old: Drive, new: Drive, undo: ExitStack) -> bool:
    """Change one drive while it runs; True: it waits for the next start."""
    hardware = ("iface", "position", "subtype", "serial", "autocompact")
    if any(getattr(old, name) != getattr(new, name) for name in hardware):
        return True
    if old.enabled != new.enabled:
        if new.enabled:
            return not _plug(live, new, undo)
        machineplug.take_out(live.env, live.monitor, old)
        undo.callback(_quietly, live, old)
        return False
    if not new.is_disk and new.enabled:
        undo.callback(_disc_quietly, live, old)
        _disc(live, new)
    return False


def _disc(live: _Live, drive: Drive) -> None:
    """Put the disc of a CD drive in, or take it out."""
    with ExitStack() as opened:
        spec, descriptors = machinedrives.open_one(live.env, drive, opened)
        if not descriptors:
            plug.eject(live.monitor, spec)
            return
        spec = spec._replace(file=live.monitor.add_file(descriptors[0]))
        plug.insert(live.monitor, spec)


def _disc_quietly(live: _Live, drive: Drive) -> None:
    with suppress(VZError):
        _disc(live, drive)


def _grow_stopped(node: Node, env: Environment, changes: Changes) -> None:
    for drive, size in changes.grown:
        path = machinedrives.source_of(env, drive)
        if drive.format == machinedrives.BUNDLE:
            bundle.grow(path, size)
        else:
            image.resize(path, size, drive.format, key=machinekeys.of(node, drive))


def _secret(node: Node, env: Environment, new: Config, made: MachinePlan, *, running: bool) -> None:
    """Keep the password of the remote display, and give it to QEMU."""
    if made.secret is None:
        return
    vncpassword.keep(env, made.secret if made.secret.reveal() else None)
    state = new.machine
    if running and state.vnc_mode != "off" and not state.vnc_open:
        monitor = node.machines.monitor(env.uuid)
        with suppress(VZError):  # it was started without a display, or without a password
            vncpassword.put_in_force(env, monitor)


def save(node: Node, env: Environment, old: Config, new: Config) -> None:
    """Write vm.conf, and give the machine its new name."""
    changed = new.differences(old)
    name = new.identity.name
    if name and name != env.name:
        env = node.registry.rename(env, name)
        changed.pop("NAME", None)
        node.publish("ve-rename", env, new_name=name)
    if changed:
        conf = node.registry.conf_file(env)
        for key, text in changed.items():
            conf.set(key, text)
        node.registry.save(env, conf)


def check_setmode(setmode: str | None, *, save_it: bool) -> None:
    """Refuse what has no meaning for a virtual machine."""
    if setmode not in {None, "ignore"}:
        raise BadValue("--setmode: a virtual machine is restarted by prlctl restart")
    if not save_it:
        raise UsageError("A virtual machine is changed with --save only")
