"""Hardware that was changed by `set` while the machine runs, and comes with its next start.

Until then QEMU has the old hardware, and so has every saved state of it: a suspension, a snapshot
with memory, a machine that moves to another node.  What QEMU has and vm.conf does not say any more
is in the `settings` of the Layout, which travels with each of them.
"""

from __future__ import annotations

from pyvz.errors import InvalidState, Unsupported
from pyvz.model import params
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive, Drives
from pyvz.operations import machineground, machinenet, machinestate, netinfo
from pyvz.operations.machinehardware import DRIVES, FIELDS, PLAIN, on_bus
from pyvz.operations.node import Node
from pyvz.vm import plug
from pyvz.vm.monitor import Monitor


def note(node: Node, env: Environment, configs: tuple[Config, Config], monitor: Monitor) -> None:
    """Remember of a running machine what QEMU has and the new of CONFIGS (old, new) does not say.

    The devices that `set` can change while it runs have been changed.
    """
    old, new = configs
    made = machineground.layout(node, env)
    found = dict(made.settings)
    if not found and all(old.get(field) == new.get(field) for field in FIELDS):
        return
    _plain(found, old, new)
    key = params.by_field(DRIVES).key
    known = Drives().parse(found[key]) if key in found else old.machine.drives
    has = _running(known, new.machine.drives, plug.devices(monitor))
    wanted = tuple(each for each in new.machine.drives if each.enabled)
    _keep(found, key, Drives().format(has), Drives().format(wanted))
    settings = tuple(sorted(found.items()))
    if settings != made.settings:
        machineground.note_layout(node, env, made._replace(settings=settings))


def note_saved(env: Environment, old: Config, new: Config) -> None:
    """The same of a suspended machine, whose Layout is in its home."""
    made = machinestate.layout(env)
    found = dict(made.settings)
    _plain(found, old, new)
    settings = tuple(sorted(found.items()))
    if settings != made.settings:
        machinestate.keep_layout(env, made._replace(settings=settings))


def check_suspended(env: Environment, old: Config, new: Config) -> None:
    """Raise InvalidState when a suspended machine would find other devices; discs may change."""
    if _devices(old) != _devices(new):
        raise InvalidState(
            f"{env.name} is suspended: it will look for the disks and cards that it had",
            hint=f"Let it go on first (prlctl resume {env.name}), or give its state up (stop).",
        )


def _devices(config: Config) -> tuple[object, ...]:
    drives = [each for each in config.machine.drives if each.enabled]
    cards = [dict(nic.other).get(netinfo.MODEL) for nic in config.network.interfaces]
    return (sorted((x.name, x.iface, x.position, x.serial) for x in drives), cards)


def _plain(found: dict[str, str], old: Config, new: Config) -> None:
    """Note in FOUND what was in force of the settings that are one word."""
    before, after = old.text(), new.text()
    for field in PLAIN:
        key = params.by_field(field).key
        _keep(found, key, found.get(key, before.get(key, "")), after.get(key, ""))


def _keep(found: dict[str, str], key: str, has: str, wanted: str) -> None:
    """Note what QEMU HAS of a setting; nothing where that is what is WANTED."""
    found.pop(key, None)
    if has != wanted:
        found[key] = has


def _running(
    known: tuple[Drive, ...], wanted: tuple[Drive, ...], there: frozenset[str]
) -> tuple[Drive, ...]:
    """Return the drives that QEMU has: those of WANTED that are THERE, on the bus KNOWN of them."""
    before = {drive.name: drive for drive in known}
    return tuple(
        on_bus(drive, before.get(drive.name, drive))
        for drive in wanted
        if drive.enabled and drive.name in there
    )


def check_known(env: Environment, config: Config, monitor: Monitor) -> frozenset[str]:
    """Raise InvalidState when QEMU has a device that no vm.conf knows: a state with it is lost.

    Returns the devices that it has.  One that no vm.conf knows is left by a `set` that died, or
    failed, and whose guest does not let go what it had got.
    """
    known = {drive.name for drive in config.machine.drives}
    there = plug.devices(monitor)
    strange = there - known - set(machinenet.names(config).values())
    if strange:
        raise InvalidState(
            f"{env.name} still has {', '.join(sorted(strange))}, which was to be taken out of it",
            hint=f"When its guest does not let it go: prlctl restart {env.name}",
        )
    return there


def check_plugged(env: Environment, config: Config, monitor: Monitor, verb: str) -> None:
    """Raise Unsupported when a disk waits for the next start: VERB ("be moved") is for all."""
    there = check_known(env, config, monitor)
    for drive in config.machine.drives:
        if drive.is_disk and drive.enabled and drive.name not in there:
            raise Unsupported(
                f"{drive.name} comes with the next start of {env.name}, which cannot {verb} before",
                hint=f"Restart it (prlctl restart), or disable the disk: --device-set {drive.name}"
                " --disable",
            )
