"""The life of a virtual machine: what lifecycle.py does for a container, with QEMU in its place.

The order is the same: lease, repair, check, journal, steps with their undo, run state, event.  The
states of the inside are QEMU's own; what the run state keeps is how the machine was put together,
which a saved state of it needs (machinestate.py).
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from pyvz.errors import (
    AlreadyMounted,
    Disabled,
    InvalidState,
    NotRunning,
    StopError,
    Timeout,
    VZError,
)
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import (
    backuplease,
    leftovers,
    machinebackup,
    machinedisk,
    machineground,
    machinemount,
    machinenet,
    machinepci,
    machinepending,
    machineshot,
    machinestate,
    machineusb,
    overtake,
)
from pyvz.operations.machineground import KILL_TIMEOUT, State
from pyvz.operations.node import Node
from pyvz.operations.transition import require, stopping
from pyvz.store.journal import Journal, Record
from pyvz.store.state import RunState
from pyvz.vm import channels
from pyvz.vm.agent import Agent
from pyvz.vm.runtime import End

log = logging.getLogger(__name__)

BOOT_TIMEOUT = 300.0  # --wait
EXIT_LEASE_TIMEOUT = 120.0
SUSPEND = "machine-suspend"  # of the journal; that of a container is another (dump.py)


class Start(NamedTuple):
    """As StartOptions of lifecycle.py; repair has no meaning for a machine."""

    wait: bool = False
    repair: bool = False
    force: bool = False
    skip_fsck: bool = False


class Stop(NamedTuple):
    """kill: at once.  noforce: fail rather than kill.  timeout: seconds for the guest.

    acpi: press the power button at once, without asking the guest agent.
    """

    kill: bool = False
    noforce: bool = False
    timeout: float = 60.0
    acpi: bool = False


def start(
    node: Node, env: Environment, options: Start, progress: Progress | None = None
) -> Environment:
    """Start a machine, or let a suspended one go on; raises AlreadyRunning, Disabled, ..."""
    with backuplease.lease(node, env, "start"):
        repair(node, env)
        begin(node, env, options, progress or NoProgress())
    if options.wait:
        wait_booted(node, env)
    return env


def begin(node: Node, env: Environment, options: Start, progress: Progress) -> None:
    """Start it; the lease is held and nothing is left to repair."""
    status = require(node, env, "start")
    if status == Status.SUSPENDED:
        wake(node, env, progress)
        return
    if status == Status.MOUNTED:
        raise AlreadyMounted(f"{env.name} is mounted", hint=f"prlctl umount {env.name}")
    config = machinedisk.measured(node, env, checked(node, env, options))
    progress.stage("Starting")
    machineground.bring_up(node, env, config)
    node.publish("ve-start", env)


def wake(node: Node, env: Environment, progress: Progress) -> None:
    """Let a suspended machine go on from its saved state; raises RestoreError (state is kept)."""
    progress.stage("Resuming")
    config = node.registry.config(env)
    made = machinestate.layout(env)._replace(hugepages=config.machine.hugepages)
    state = State(made, lambda monitor: machinestate.put_in(env, monitor, made))
    machineground.bring_up(node, env, config, state)
    node.publish("ve-resume", env, was="suspended")


def suspend(node: Node, env: Environment, progress: Progress | None = None) -> Environment:
    """Write the state of a running machine to its home and end it; raises CheckpointError."""
    progress = progress or NoProgress()
    with backuplease.lease(node, env, "suspend"):
        repair(node, env)
        if node.status(env) != Status.PAUSED:
            require(node, env, "suspend")
        machinepci.refuse(node, env, "it cannot be suspended")
        monitor = node.machines.monitor(env.uuid)
        machinepending.check_known(env, node.registry.config(env), monitor)
        progress.stage("Suspending")
        journal = Journal.begin(node.paths, env.uuid, SUSPEND, {})
        try:
            machinestate.save(env, monitor, machineground.layout(node, env), progress)
        except BaseException:
            _put_in(node, env)
            journal.done()
            raise
        machineground.quit_machine(node, env)
        machineground.clear(node, env)
        journal.done()
    node.publish("ve-suspend", env)
    return env


def _put_in(node: Node, env: Environment) -> None:
    """Give a machine that goes on the devices back that its state was to be written without."""
    with suppress(VZError):
        monitor = node.machines.monitor(env.uuid)
        machineusb.put_in(node, env, node.registry.config(env), monitor)


def checked(node: Node, env: Environment, options: Start) -> Config:
    """Return the configuration when it may be started; raises Disabled, InvalidState."""
    config = node.registry.config(env)
    if config.boot.disabled and not options.force:
        raise Disabled(f"{env.name} is disabled", hint="Use --force, or set --disabled no.")
    if config.identity.type == "template":
        raise InvalidState(f"{env.name} is a template", hint="Clone it, or set --template no.")
    return config


def stop(node: Node, env: Environment, options: Stop, progress: Progress | None = None) -> str:
    """Stop a machine; returns "stopped", "killed" or "already".

    Raises StopError when the guest does not stop in time and may not be killed.
    """
    quit_ = partial(machineground.quit_machine, node, env)
    overtaken = options.kill and overtake.stopping(node, env, quit_)
    patience = overtake.PATIENCE if overtaken else None
    freely = options.kill and backuplease.open_ended(node, env.uuid)
    lease = node.lease if freely else partial(backuplease.lease, node)
    with lease(env, "stop", timeout=patience):
        repair(node, env)
        if env.uuid not in node.machines.running():
            how = _drop(node, env)
            return "killed" if overtaken and how == "already" else how
        return _stopped(node, env, options, progress or NoProgress())


def _drop(node: Node, env: Environment) -> str:
    """Forget the saved state of a suspended machine, as for a container."""
    if not machinestate.path(env).exists():
        return "already"
    machinestate.forget(env)
    node.publish("ve-stop", env, reason="dropped")
    return "stopped"


def _stopped(node: Node, env: Environment, options: Stop, progress: Progress) -> str:
    journal = Journal.begin(node.paths, env.uuid, "stop", {})
    how = halt(node, env, options, progress, journal=journal)
    journal.done()
    return how


def halt(
    node: Node,
    env: Environment,
    options: Stop,
    progress: Progress,
    *,
    journal: Journal | None = None,
) -> str:
    """Stop one that runs, in an operation that has the lease and a record; returns how it ended.

    journal: done when it runs on.  Raises StopError.
    """
    progress.stage("Stopping")
    with stopping(node, env, journal):
        killed = options.kill or not _stop_orderly(node, env, options)
    if killed:
        machineground.quit_machine(node, env)
    machineground.clear(node, env)
    node.publish("ve-stop", env, reason="killed" if killed else "halt")
    return "killed" if killed else "stopped"


def _stop_orderly(node: Node, env: Environment, options: Stop) -> bool:
    """Ask the guest by its agent, then by the power button; False when it has to be killed."""
    deadline = time.monotonic() + options.timeout
    monitor = node.machines.monitor(env.uuid)
    with suppress(VZError):
        if monitor.state in {"paused", "io-error"}:
            monitor.execute("cont")
    # Half of the time: an agent that took the command may still not be able to do it.
    asked = not options.acpi and channels.has_agent(monitor) and _ask_agent(node, env)
    if asked and node.machines.wait_end(env.uuid, options.timeout / 2):
        return True
    # Guests miss a press of the button while they boot: it is pressed again.
    while (left := deadline - time.monotonic()) > 0:
        with suppress(VZError):
            monitor.execute("system_powerdown")
        if node.machines.wait_end(env.uuid, min(5.0, left)):
            return True
    if options.noforce:
        raise StopError(
            f"{env.name} did not stop within {options.timeout:.0f} seconds",
            hint="It runs on. Use --kill to stop it at once.",
        )
    return False


def _ask_agent(node: Node, env: Environment) -> bool:
    try:
        with Agent(lambda: node.machines.connect(env.uuid, "agent")) as agent:
            agent.tell("guest-shutdown", {"mode": "powerdown"})
    except VZError as error:
        log.info("%s: its agent was not able to stop it: %s", env.name, error)
        return False
    return True


def restart(
    node: Node, env: Environment, options: Stop, progress: Progress | None = None
) -> Environment:
    """Stop it orderly and start it again; with kill: reset the machine, as the button does."""
    progress = progress or NoProgress()
    lease = node.lease if options.kill else partial(backuplease.lease, node)  # QEMU stays, or ends
    with lease(env, "restart"):
        repair(node, env)
        if env.uuid in node.machines.running():
            if options.kill:
                return _reset(node, env)
            _stopped(node, env, options, progress)
        begin(node, env, Start(), progress)
    return env


def _reset(node: Node, env: Environment) -> Environment:
    monitor = node.machines.monitor(env.uuid)
    monitor.execute("system_reset")
    if monitor.state != "running":
        monitor.execute("cont")
    node.publish("ve-reboot", env)
    return env


def pause(node: Node, env: Environment) -> Environment:
    """Stop its CPUs; raises NotRunning."""
    with node.lease(env, "pause"):
        repair(node, env)
        require(node, env, "pause")
        node.machines.monitor(env.uuid).execute("stop")
        node.publish("ve-pause", env)
    return env


def resume(node: Node, env: Environment) -> Environment:
    """Let a paused or suspended machine go on."""
    with node.lease(env, "resume"):
        repair(node, env)
        if require(node, env, "resume") == Status.SUSPENDED:
            wake(node, env, NoProgress())
            return env
        node.machines.monitor(env.uuid).execute("cont")
        node.publish("ve-resume", env)
    return env


def wait_booted(node: Node, env: Environment, timeout: float = BOOT_TIMEOUT) -> None:
    """Wait until the guest's agent answers; raises Timeout, NotRunning."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if env.uuid not in node.machines.running():
            raise NotRunning(f"{env.name} has ended while it booted")
        with suppress(VZError):
            if channels.has_agent(node.machines.monitor(env.uuid)):
                with Agent(lambda: node.machines.connect(env.uuid, "agent")):
                    return
        time.sleep(0.5)
    raise Timeout(f"{env.name} runs, but no guest agent answered within {timeout:.0f} seconds")


def repair(node: Node, env: Environment) -> None:
    """Finish or undo what a killed predecessor left behind; the caller holds the lease."""
    record = Journal.leftover(node.paths, env.uuid)
    if record is not None and leftovers.repair(node, record):
        record = None
    if record is not None and record.verb in machineshot.VERBS:
        machineshot.repair(node, env, record)
        record = None
    running = env.uuid in node.machines.running()
    if record is not None:
        _repair_record(node, env, record, running=running)
    elif not running and _has_left(node, env):
        log.warning("%s: its QEMU is gone and nobody cleaned up", env.name)
        machineground.clear(node, env)
    machinemount.repair(node, env)
    machinebackup.repair_left(node, env)


def _repair_record(node: Node, env: Environment, record: Record, *, running: bool) -> None:
    log.warning("%s: repairing an unfinished %s", env.name, record.verb)
    if record.verb == SUSPEND:
        running = _repair_suspend(node, env, running=running)
    # A start that got as far as letting it go has a whole machine: it lives, and a saved state
    # that it came from is void.
    if record.verb == "start" and record.step("going") is not None:
        machinestate.forget(env)
        if running:
            node.machines.monitor(env.uuid).execute("cont")
        else:
            machineground.clear(node, env)
    elif record.verb == "start" or not running:
        node.machines.kill(env.uuid, timeout=KILL_TIMEOUT)
        machineground.clear(node, env)
    else:
        _mark_running(node, env)
    Journal.forget(node.paths, env.uuid)


def _repair_suspend(node: Node, env: Environment, *, running: bool) -> bool:
    """Finish a suspension whose state is whole, else let the machine go on; whether it runs."""
    if running and not machinestate.path(env).exists():
        machinestate.give_up(env, node.machines.monitor(env.uuid))
        _put_in(node, env)
        return True
    return False


def _mark_running(node: Node, env: Environment) -> None:
    state = RunState.load(node.paths, env.uuid)
    if state is not None and state.status != Status.RUNNING:
        state._replace(status=Status.RUNNING).save(node.paths, env.uuid)


def _has_left(node: Node, env: Environment) -> bool:
    if env.uuid in node.machines.left():
        return True
    return RunState.load(node.paths, env.uuid) is not None


def ended(node: Node, end: End) -> None:
    """Take note of the end of a machine that nobody of us has stopped, and clean up."""
    try:
        env = node.registry.resolve(end.uuid)
    except VZError:
        node.machines.clean(end.uuid)
        machinenet.clean(node, end.uuid)
        machinepci.give_back(node, end.uuid)
        return
    with node.lease(env, "cleaning up after stop", timeout=EXIT_LEASE_TIMEOUT):
        state = RunState.load(node.paths, env.uuid)
        if state is None or state.pid != end.pid or env.uuid in node.machines.running():
            return
        machineground.clear(node, env)
        reason = "halt" if end.reason.startswith("guest-") else end.reason or "killed"
        log.info("%s: QEMU ended: %s", env.name, reason)
        node.publish("ve-stop", env, reason=reason)
