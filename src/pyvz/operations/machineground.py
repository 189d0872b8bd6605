"""The ground of a virtual machine's verbs: QEMU brought up with everything it needs, and all of it
taken away again.  Who calls holds the lease and has checked.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import NamedTuple

from pyvz.errors import NotRunning, StartError, VZError
from pyvz.linux.process import boot_id
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.operations import (
    cloudinit,
    machinedrives,
    machinefiles,
    machinehardware,
    machinekeys,
    machinelimits,
    machinenet,
    machinepci,
    machineserial,
    machinestate,
    machinetpm,
    machineusb,
    memory,
    network,
    vmcard,
    vncpassword,
)
from pyvz.operations.node import Node
from pyvz.store.journal import Journal
from pyvz.store.state import RunState
from pyvz.vm import accelerator, cpumodel, hugepages
from pyvz.vm.accelerator import Accelerator
from pyvz.vm.monitor import Monitor
from pyvz.vm.runtime import Launch, Process
from pyvz.vm.spec import (
    PROMISED,
    Firmware,
    Layout,
    from_config,
    laid_out,
    layout_of,
    memory_of,
)
from pyvz.vm.tpm import Companion

log = logging.getLogger(__name__)

KILL_TIMEOUT = 30.0
QUIT = 15.0  # seconds for QEMU to write its caches and end: bitmaps, too, are lost without


class State(NamedTuple):
    """A saved state to go on from: how the machine must be put together, what puts the state in.

    incoming: QEMU waits for it from the start (a file of machinestate.py).  paused: it was paused.
    """

    layout: Layout
    load: Callable[[Monitor], None]
    incoming: bool = True


def bring_up(node: Node, env: Environment, config: Config, state: State | None = None) -> None:
    """Start QEMU and let it go, from a saved STATE or anew; a failure undoes everything."""
    # Only a saved state outlives the node, and must not be believed when its disks have changed.
    journal = Journal.begin(node.paths, env.uuid, "start", {}, durable=state is not None)
    with ExitStack() as undo:
        undo.callback(journal.done)
        # One that is resumed had them all the while.
        asked = vmcard.ask(node, env, config) if state is None else None
        monitor = raise_up(node, env, config, state, undo)
        if asked is not None:
            network.refuse_taken(asked, network.START_PATIENCE)
        machinenet.connected(node, env, config, monitor)
        if state is not None:
            machineusb.put_in(node, env, config, monitor)
            machinenet.announce(config, monitor)
        journal.note("going")  # from here on its disks change: a saved state is void
        monitor.go()
        undo.pop_all()
    if state is not None:
        machinestate.forget(env)
    journal.done()
    (env.home / ".running").touch()


def raise_up(
    node: Node, env: Environment, config: Config, state: State | None, undo: ExitStack
) -> Monitor:
    """Start QEMU and put the STATE in; nothing runs yet, and its cards lead nowhere.

    UNDO takes all of it away again.
    """
    if state is not None:
        config = machinehardware.applied(config, state.layout)
    undo.callback(memory.release, node, env.uuid)
    memory.admit(node, env, config, overhead=PROMISED)
    undo.callback(machinenet.clean, node, env.uuid)
    undo.callback(_give_back, node, env)
    with ExitStack() as opened:
        launch = _launch(node, env, config, state, opened)
        undo.callback(node.machines.clean, env.uuid)
        process = node.machines.start(launch, lambda: memory.activate(node, env))
        undo.callback(node.machines.kill, env.uuid, timeout=KILL_TIMEOUT)
    monitor = node.machines.monitor(env.uuid)
    _check_processor(env, config, monitor)
    type_ = launch.spec.type or _machine_type(monitor)
    if state is None and not launch.spec.type:  # a saved one may be another node's to write
        _remember_type(node, env, type_)
    if launch.spec.remote is not None and launch.spec.remote.password:
        vncpassword.put_in_force(env, monitor)
    if state is not None:
        state.load(monitor)
    made = state.layout if state else layout_of(launch.spec._replace(type=type_))
    running_state(process, made).save(node.paths, env.uuid)
    undo.callback(RunState.clear, node.paths, env.uuid)
    return monitor


def _check_processor(env: Environment, config: Config, monitor: Monitor) -> None:
    """Raise StartError when a feature that is required cannot be had here."""
    wanted = [each.name for each in config.machine.cpu_features if each.policy == "require"]
    if wanted and (lacking := cpumodel.missing(monitor, wanted)):
        raise StartError(
            f"The processor that {env.name} gets here cannot have {', '.join(lacking)}",
            hint="It is required by its configuration: see prlctl set --cpu-features.",
        )


def accelerator_of(node: Node) -> Accelerator:
    """Return by what the processors of this node's machines are made."""
    return accelerator.choose(node.paths.run, node.config().values.get(accelerator.KEY, ""))


def _launch(
    node: Node, env: Environment, config: Config, state: State | None, opened: ExitStack
) -> Launch:
    """Open everything that QEMU gets and say how it is started."""
    chosen = accelerator_of(node)
    cpus = os.cpu_count() or 1
    spec = from_config(env.uuid, env.name, config, cpus=cpus, accelerator=chosen.name)
    if state is not None:
        spec = laid_out(spec, state.layout)
    uid = node.id_ranges.allocate(env.uuid).first
    drives = machinedrives.open_all(env, config, opened)
    drives = cloudinit.with_seed(env, config, drives, opened)
    files = list(drives.descriptors)
    board = _board(env, config, uid, opened)
    if board.firmware is not None:
        files.append(board.variables)
    nics = machinenet.open_all(node, env, config, opened)
    serials = machineserial.open_all(env, config, opened)
    # A saved state has none of the node's: those on USB are put in when it is.
    usb_devices = machineusb.open_all(node, env, config, opened) if state is None else ()
    files += (each.descriptor for each in usb_devices)
    pci_devices = machinepci.open_all(node, env, config, uid) if state is None else ()
    secrets = machinekeys.open_all(node, config, opened)
    spec = spec._replace(
        firmware=board.firmware,
        tpm=board.tpm,
        drives=drives.drives,
        nics=nics,
        serials=serials.ports,
        usb_devices=usb_devices,
        pci_devices=pci_devices,
        told=machinefiles.payload(env.name, config),
        files=(*files, *serials.files),
        secrets=secrets,
        incoming=state is not None and state.incoming,
    )
    return Launch(
        spec=spec,
        descriptors=(
            *(*files, *serials.files, *serials.sockets),
            *(nic.tap for nic in nics),
            *(descriptor for _, descriptor in secrets),
            *((board.tpm,) if board.companions else ()),
        ),
        uid=uid,
        limits=machinelimits.of(config, spec, cpus=cpus),
        disks=drives.disks,
        log=node.paths.log / "vm" / f"{env.uuid}.log",
        companions=board.companions,
    )


class _Board(NamedTuple):
    """What is on the board beside processor and memory.  variables, tpm: descriptors."""

    firmware: Firmware | None = None
    variables: int = -1
    tpm: int = -1
    companions: tuple[Companion, ...] = ()


def _board(env: Environment, config: Config, uid: int, opened: ExitStack) -> _Board:
    """Open firmware and TPM, and look whether there is memory of the kind that is wanted."""
    board = _Board()
    if config.machine.efi:
        secure = config.machine.secure_boot
        firmware, variables = machinedrives.open_firmware(env, opened, secure=secure)
        board = board._replace(firmware=firmware, variables=variables)
    if config.machine.tpm:
        way, companion = machinetpm.open_all(env, uid, opened)
        board = board._replace(tpm=way, companions=(companion,))
    if config.machine.hugepages:
        hugepages.check(memory_of(config))
    return board


def running_state(process: Process, layout: Layout) -> RunState:
    """Return the run state of a machine that was just started."""
    return RunState(
        boot_id=boot_id(),
        pid=process.pid,
        start_time=process.start_time,
        status=Status.RUNNING,
        started_at=time.time(),
        data={"layout": layout._asdict()},
    )


def layout(node: Node, env: Environment) -> Layout:
    """Return how a running machine is put together now; raises NotRunning."""
    state = RunState.load(node.paths, env.uuid)
    try:
        return Layout.from_json(state.data["layout"] if state else None)
    except (ValueError, KeyError):
        raise NotRunning(f"{env.name} is not running") from None


def note_layout(node: Node, env: Environment, changed: Layout) -> None:
    """Remember that a running machine is put together otherwise now."""
    state = RunState.load(node.paths, env.uuid)
    if state is not None:
        data = dict(state.data) | {"layout": changed._asdict()}
        state._replace(data=data).save(node.paths, env.uuid)


def _machine_type(monitor: Monitor) -> str:
    """Return the machine type with its version, which "q35" is short for."""
    name = str(monitor.execute("qom-get", {"path": "/machine", "property": "type"}))
    return name.removesuffix("-machine")


def _remember_type(node: Node, env: Environment, type_: str) -> None:
    """Keep the machine's type, so that a later QEMU gives the guest the same hardware."""
    conf = node.registry.conf_file(env)
    if conf.get("VM_MACHINE") != type_:
        conf.set("VM_MACHINE", type_)
        node.registry.save(env, conf)


def quit_machine(node: Node, env: Environment) -> None:
    """End QEMU: it writes its caches first, unless it does not answer."""
    with suppress(VZError):
        node.machines.monitor(env.uuid).execute("quit", timeout=QUIT)
    if not node.machines.wait_end(env.uuid, QUIT):
        log.warning("%s: QEMU did not quit and is killed", env.name)
    node.machines.kill(env.uuid, timeout=KILL_TIMEOUT)


def _give_back(node: Node, env: Environment) -> None:
    """Let the node have its devices again; QEMU has ended."""
    machinepci.give_back(node, env.uuid)
    with suppress(VZError):
        machineusb.give_back(node.registry.config(env))


def clear(node: Node, env: Environment) -> None:
    """Undo, in reverse, what a start made; idempotent."""
    memory.release(node, env.uuid)
    machinenet.clean(node, env.uuid)
    node.machines.clean(env.uuid)
    _give_back(node, env)
    (env.home / ".running").unlink(missing_ok=True)
    RunState.clear(node.paths, env.uuid)
