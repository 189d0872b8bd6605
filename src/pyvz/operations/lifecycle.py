"""Start, stop and everything between: the life of an environment on this node.

Each verb takes the lease, re-reads the configuration under it, repairs what a killed predecessor
left, checks, and only then changes anything.  What it does is undone in reverse when a later step
fails.  The journal record lets `recover` do the same after vzd was killed in the middle.
"""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from pyvz.container import guestinit
from pyvz.container.runtime import Exit
from pyvz.errors import (
    Disabled,
    InvalidState,
    Locked,
    StopError,
    VZError,
)
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import (
    actionscript,
    dump,
    ground,
    guestsettings,
    leftovers,
    machine,
    machinemount,
    memory,
    network,
    overtake,
)
from pyvz.operations.node import Node
from pyvz.operations.transition import require as require  # noqa: PLC0414  also for others
from pyvz.operations.transition import stopping
from pyvz.store.journal import Journal
from pyvz.store.state import RunState

log = logging.getLogger(__name__)

STOP_TIMEOUT = 60.0  # seconds that the original waits for a clean stop before it kills
KILL_TIMEOUT = 30.0
BOOT_TIMEOUT = 300.0  # --wait
EXIT_LEASE_TIMEOUT = 120.0


class StartOptions(NamedTuple):
    """wait: return when the guest's boot is over.  repair: start a shell instead of init.

    force: start although DISABLED, or although the node cannot keep the memory guarantee.
    skip_fsck: do not check the file system before the mount.
    """

    wait: bool = False
    repair: bool = False
    force: bool = False
    skip_fsck: bool = False


class StopOptions(NamedTuple):
    """kill: do not ask init.  noforce: fail instead of killing after the deadline.

    skip_umount: leave the root mounted.  acpi: press a virtual machine's power button at once.
    """

    kill: bool = False
    noforce: bool = False
    skip_umount: bool = False
    timeout: float = STOP_TIMEOUT
    acpi: bool = False


def start(
    node: Node, ref: str, *, options: StartOptions | None = None, progress: Progress | None = None
) -> Environment:
    """Start a container; raises AlreadyRunning, Disabled, MountError, StartError, ..."""
    options = options or StartOptions()
    env = node.registry.resolve(ref)
    if env.kind == Kind.VM:
        return machine.start(node, env, machine.Start(*options), progress)
    with node.lease(env, "start"):
        start_locked(node, env, options, progress or NoProgress())
    if options.wait:
        guestsettings.wait_booted(node, env, timeout=BOOT_TIMEOUT)
    return env


def stop(
    node: Node, ref: str, *, options: StopOptions | None = None, progress: Progress | None = None
) -> str:
    """Stop a container; returns "stopped", "killed" or "already" (it was not running).

    Raises StopError when it did not stop in time and may not be killed (`noforce`).
    """
    options = options or StopOptions()
    env = node.registry.resolve(ref)
    if env.kind == Kind.VM:
        return machine.stop(node, env, _machine_stop(options), progress)
    kill = partial(node.runtime.kill, env.uuid, timeout=KILL_TIMEOUT)
    overtaken = options.kill and overtake.stopping(node, env, kill)
    with node.lease(env, "stop", timeout=overtake.PATIENCE if overtaken else None):
        repair(node, env)
        if node.status(env) == Status.SUSPENDED and dump.drop(env):
            node.publish("ve-stop", env, reason="dropped")
            return "stopped"
        if node.status(env) in {Status.STOPPED, Status.MOUNTED, Status.SUSPENDED, Status.INVALID}:
            return "killed" if overtaken else "already"
        return _stop_locked(node, env, options, progress or NoProgress())


def restart(
    node: Node,
    ref: str,
    *,
    start_options: StartOptions | None = None,
    stop_options: StopOptions | None = None,
    progress: Progress | None = None,
) -> Environment:
    """Stop the container, if it runs, and start it again under one lease."""
    progress = progress or NoProgress()
    env = node.registry.resolve(ref)
    if env.kind == Kind.VM:
        wanted = _machine_stop(stop_options or StopOptions())
        return machine.restart(node, env, wanted, progress)
    with node.lease(env, "restart"):
        repair(node, env)
        if node.status(env) in {Status.RUNNING, Status.PAUSED}:
            _stop_locked(node, env, stop_options or StopOptions(), progress)
        start_locked(node, env, start_options or StartOptions(), progress)
    if start_options is not None and start_options.wait:
        guestsettings.wait_booted(node, env, timeout=BOOT_TIMEOUT)
    return env


def pause(node: Node, ref: str) -> Environment:
    """Freeze every process of a running container in memory; raises NotRunning."""
    env = node.registry.resolve(ref)
    if env.kind == Kind.VM:
        return machine.pause(node, env)
    with node.lease(env, "pause"):
        require(node, env, "pause")
        node.runtime.pause(env.uuid)
        node.publish("ve-pause", env)
    return env


def resume(node: Node, ref: str, *, progress: Progress | None = None) -> Environment:
    """Let a paused container go on, or bring a suspended one back from disk.

    Raises NotRunning, RestoreError (it stays suspended).
    """
    env = node.registry.resolve(ref)
    if env.kind == Kind.VM:
        return machine.resume(node, env)
    with node.lease(env, "resume"):
        repair(node, env)
        if require(node, env, "resume") == Status.SUSPENDED:
            _resume_locked(node, env, progress or NoProgress())
            node.publish("ve-resume", env, was="suspended")
        else:
            dump.drop(env)  # vzctl chkpnt --dump; what runs on is no longer what was written
            node.runtime.unpause(env.uuid)
            node.publish("ve-resume", env)
    return env


def _resume_locked(node: Node, env: Environment, progress: Progress) -> None:
    dump.resume(node, env, dump.ResumeOptions(dump.default(env)), progress)


def mount(node: Node, ref: str, *, readonly: bool | None = None) -> Environment:
    """Mount the root of one that is stopped; raises AlreadyMounted, AlreadyRunning, MountError.

    readonly: None: a container writable, a virtual machine (whose guest made the file system) not.
    """
    env = node.registry.resolve(ref)
    with node.lease(env, "mount"):
        repair(node, env)
        require(node, env, "mount")
        if env.kind == Kind.VM:
            machinemount.mount_root(node, env, readonly=readonly is not False)
        else:
            with ExitStack() as undo:
                ground.mount_root(node, env, undo, readonly=bool(readonly))
                undo.pop_all()
        node.publish("ve-mount", env)
    return env


def umount(node: Node, ref: str) -> Environment:
    """Unmount the root of one that does not run; raises NotMounted, Busy."""
    env = node.registry.resolve(ref)
    with node.lease(env, "umount"):
        repair(node, env)
        require(node, env, "umount")
        if env.kind == Kind.VM:
            machinemount.umount_root(node, env)
        else:
            ground.umount_root(node, env)
        node.publish("ve-umount", env)
    return env


def repair(node: Node, env: Environment) -> None:
    """Finish or undo what a killed predecessor left behind; the caller holds the lease."""
    if env.kind == Kind.VM:
        machine.repair(node, env)
        return
    record = Journal.leftover(node.paths, env.uuid)
    if record is not None and leftovers.repair(node, record):
        return
    running = env.uuid in node.runtime.running(env.uuid)
    if record is not None:
        log.warning("%s: repairing an unfinished %s", env.name, record.verb)
        # A start that got as far as its state record has a whole container: it may live.
        if running and record.verb == "start" and RunState.load(node.paths, env.uuid) is None:
            node.runtime.kill(env.uuid, timeout=KILL_TIMEOUT)
            running = False
        if not running:
            ground.clear(node, env)
        Journal.forget(node.paths, env.uuid)
    elif not running and RunState.load(node.paths, env.uuid) is not None:
        log.warning("%s: its init is gone and nobody cleaned up", env.name)
        ground.clear(node, env)


def exited(node: Node, exit_: Exit) -> None:
    """Take note of the end of a container's init: clean up, and start again after a reboot.

    A stop that is under way does the cleaning itself; then nothing is left to do here.
    """
    try:
        env = node.registry.resolve(exit_.uuid)
    except VZError:
        node.runtime.clean(exit_.uuid)
        memory.release(node, exit_.uuid)
        network.clean(node, exit_.uuid)
        return
    with node.lease(env, "cleaning up after stop", timeout=EXIT_LEASE_TIMEOUT):
        state = RunState.load(node.paths, env.uuid)
        if state is None or state.pid != exit_.pid or env.uuid in node.runtime.running(env.uuid):
            return
        ground.clear(node, env)
        log.info("%s: init ended: %s", env.name, exit_.reason)
        node.publish("ve-stop", env, reason=str(exit_.reason))
        if exit_.reason != "reboot":
            return
        if not node.config().allow_reboot:
            log.warning("%s asked for a reboot, which ALLOWREBOOT=no forbids", env.name)
            return
        start_locked(node, env, StartOptions(force=True), NoProgress())
        node.publish("ve-reboot", env)


def recover(node: Node) -> None:
    """Bring every environment to a state that the kernel and the disk agree on (start of vzd)."""
    for env in node.registry.environments():
        try:
            with node.lease(env, "recovery", timeout=0.0):
                repair(node, env)
        except Locked as busy:
            log.info("%s: left alone: %s", env.name, busy)
        except (VZError, OSError):
            log.exception("%s: could not be repaired", env.name)
    memory.recover(node)
    network.recover(node)


def autostart_order(node: Node) -> list[Environment]:
    """Return what starts with the node: ONBOOT=yes, and ONBOOT=auto that ran when it went down.

    BOOTORDER decides, higher first, those without one last; then the name (config.md, 3.1).
    """
    wanted: list[tuple[float, str, Environment]] = []
    for env in node.registry.environments():
        try:
            boot = node.registry.config(env).boot
        except VZError as error:
            log.warning("%s: not started: %s", env.name, error)
            continue
        ran = (env.home / ".running").exists()
        if boot.onboot == "yes" or (boot.onboot == "auto" and ran):
            rank = math.inf if boot.order is None else -boot.order
            wanted.append((rank, env.name, env))
    return [env for _, _, env in sorted(wanted)]


def start_locked(node: Node, env: Environment, options: StartOptions, progress: Progress) -> None:
    """Start a container; the caller holds the lease.  Raises as `start`."""
    repair(node, env)
    require(node, env, "start")
    config = node.registry.config(env)
    if config.boot.disabled and not options.force:
        raise Disabled(f"{env.name} is disabled", hint="Use --force, or set --disabled no.")
    if dump.pending(env) and not options.repair:
        _resume_locked(node, env, progress)
        node.publish("ve-resume", env, was="suspended")
        return
    if config.identity.type == "template":
        raise InvalidState(f"{env.name} is a template", hint="Clone it, or set --template no.")
    memory.admit(node, env, config, force=options.force)
    progress.stage("Starting")
    with ExitStack() as undo:
        undo.callback(memory.release, node, env.uuid)
        journal = Journal.begin(node.paths, env.uuid, "start", durable=False)
        undo.callback(journal.done)
        asked = network.ask(node, env, config)
        ground.mount_root(node, env, undo)
        kind = ground.prepare_guest(node, env, config)
        spec = ground.specification(node, env, config, kind, repair_mode=options.repair)
        undo.callback(node.runtime.clean, env.uuid)
        undo.callback(network.clean, node, env.uuid)
        init = node.runtime.start(spec, network.prepare(node, env, config, asked=asked))
        undo.callback(node.runtime.kill, env.uuid, timeout=KILL_TIMEOUT)
        ground.running_state(init, kind).save(node.paths, env.uuid)
        undo.callback(RunState.clear, node.paths, env.uuid)
        memory.activate(node, env)
        actionscript.run_inside(node, env, "start")
        undo.pop_all()
    journal.done()
    (env.home / ".running").touch()
    node.publish("ve-start", env)


def _machine_stop(options: StopOptions) -> machine.Stop:
    return machine.Stop(options.kill, options.noforce, options.timeout, options.acpi)


def _stop_locked(node: Node, env: Environment, options: StopOptions, progress: Progress) -> str:
    journal = Journal.begin(node.paths, env.uuid, "stop", durable=False)
    how = halt(node, env, options, progress, journal=journal)
    journal.done()
    return how


def halt(
    node: Node,
    env: Environment,
    options: StopOptions,
    progress: Progress,
    *,
    journal: Journal | None = None,
) -> str:
    """Stop a container in an operation that has the lease and a record; returns how it ended.

    journal: done when it runs on.  Raises StopError.
    """
    progress.stage("Stopping")
    with stopping(node, env, journal) as state:
        killed = options.kill or not _stop_orderly(node, env, state, options)
    if killed:
        node.runtime.kill(env.uuid, timeout=KILL_TIMEOUT)
    ground.clear(node, env, keep_mounted=options.skip_umount)
    node.publish("ve-stop", env, reason="killed" if killed else "halt")
    return "killed" if killed else "stopped"


def _stop_orderly(
    node: Node, env: Environment, state: RunState | None, options: StopOptions
) -> bool:
    """Ask init to power off; False when it has to be killed.  Raises StopError with noforce."""
    if node.cgroups.frozen(env.uuid):
        dump.drop(env)
        node.runtime.unpause(env.uuid)
    try:
        actionscript.run_inside(node, env, "stop")
    except VZError as error:
        log.warning("%s: stop script: %s", env.name, error)
    kind = guestinit.by_name(str(state.data.get("init", "other")) if state is not None else "other")
    if node.runtime.stop(env.uuid, kind, timeout=options.timeout):
        return True
    if options.noforce:
        raise StopError(
            f"{env.name} did not stop within {options.timeout:.0f} seconds",
            hint="It runs on. Use --kill to stop it at once.",
        )
    return False
