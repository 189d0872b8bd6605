"""What a container stands on while it runs: its mounted root, its specification, its traces.

Shared by all that make a container run or clean up after one.  The caller holds the lease.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack

from pyvz.container import guestinit
from pyvz.container.guestinit import InitKind
from pyvz.container.runtime import Init
from pyvz.container.spec import ContainerSpec, from_config
from pyvz.linux.guestroot import GuestRoot
from pyvz.linux.mount import is_mount_point
from pyvz.linux.process import boot_id
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.operations import (
    actionscript,
    cpulimits,
    diskmount,
    figures,
    guestsettings,
    memory,
    network,
    rootmount,
    samepage,
)
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.store.state import RunState

log = logging.getLogger(__name__)


def running_state(init: Init, kind: InitKind) -> RunState:
    return RunState(
        boot_id=boot_id(),
        pid=init.pid,
        start_time=init.start_time,
        status=Status.RUNNING,
        started_at=time.time(),
        data={"init": str(kind.name)},
    )


def prepare_guest(node: Node, env: Environment, config: Config) -> InitKind:
    """Look at the mounted guest and write into it what its configuration says (hostname, ...)."""
    with GuestRoot.open(node.root(env, config)) as guest:
        guestsettings.write(node, guest, env, config)
        return guestinit.detect(guest)


def specification(
    node: Node, env: Environment, config: Config, kind: InitKind, *, repair_mode: bool
) -> ContainerSpec:
    privileged = config.security.privileged
    ids = None if privileged else node.id_ranges.allocate(env.uuid)
    if privileged:
        log.warning("%s starts without a user namespace: its root is the node's root", env.name)
    spec = from_config(
        env,
        config,
        root=node.root(env, config),
        ids=ids,
        features=node.features,
        cpus=os.cpu_count() or 1,
    )
    argv = ("/bin/sh", "-c", "while :; do sleep 3600; done") if repair_mode else kind.argv
    disks = tuple(storage.find(env.home).devices(env.home))
    return spec._replace(
        argv=tuple(argv),
        disks=disks,
        limits=cpulimits.limits(node, env.uuid, config),
        figures=figures.wanted(node, config),
        merge=samepage.wanted(node, config),
    )


def mount_root(node: Node, env: Environment, undo: ExitStack, *, readonly: bool = False) -> None:
    """Mount the root with its action scripts; what was mounted already stays as it is."""
    root = node.root(env)
    if is_mount_point(root):
        return
    driver = storage.find(env.home)
    if not actionscript.run(node, env, "premount"):  # "skip": the script has mounted it itself
        rootmount.mount(node, env, root, readonly=readonly)
    undo.callback(driver.umount, env.home, root)
    diskmount.mount_all(node, env, node.registry.config(env), readonly=readonly)
    undo.callback(diskmount.umount_all, node, env)
    actionscript.run(node, env, "mount")


def umount_root(node: Node, env: Environment, *, cleaning: bool = False) -> None:
    """Unmount with the action scripts; while cleaning up a script that fails stops nothing.

    The caller holds the lease.
    """
    root = node.root(env)
    if not is_mount_point(root):
        diskmount.umount_all(node, env)  # a guest without a root disk, or killed half way
        return
    run_scripts = actionscript.run_ignoring_failure if cleaning else actionscript.run
    run_scripts(node, env, "umount")
    diskmount.umount_all(node, env)
    storage.find(env.home).umount(env.home, root)
    run_scripts(node, env, "postumount")


def clear(node: Node, env: Environment, *, keep_mounted: bool = False) -> None:
    """Undo, in reverse, what a start made: cgroups, links, mounts, state.  Idempotent."""
    node.runtime.clean(env.uuid)
    memory.release(node, env.uuid)
    network.clean(node, env.uuid)
    (env.home / ".running").unlink(missing_ok=True)
    if not keep_mounted:
        umount_root(node, env, cleaning=True)
    RunState.clear(node.paths, env.uuid)
