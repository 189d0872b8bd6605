"""Clone a stopped container: the same files and settings, another identity.

New: UUID, name, MAC addresses, and inside the guest its machine id and its SSH host keys.  The
host name and addresses stay as they are (as with the original), for the administrator to change.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

from pyvz.errors import PrivateMissing, VZError
from pyvz.linux import run
from pyvz.linux.guestroot import GuestRoot
from pyvz.model import params_net as params
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind, check_name
from pyvz.model.grammar_net import NetIf
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import home, lifecycle, machineclone, pool, provision, shot, storagepool
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.store import savedstates
from pyvz.store.pools import Pools

log = logging.getLogger(__name__)

OUI: Final = "c4:37:72"  # of container interfaces, libvzctl veth.h (late builds)
LINKED: Final = "LINKED_CLONE_OF"  # our key of ve.conf: the original's UUID, for those who read it
_HOST_KEYS_UNIT: Final = "etc/systemd/system/vz-hostkeys.service"  # template/guest.py
_KEY_TYPES: Final = ("rsa", "ecdsa", "ed25519")


class CloneOptions(NamedTuple):
    """destination: the directory or pool in which the copy's private area is made.

    template: the copy is marked as a template, which cannot be started.
    linked: nothing is copied; both share what they have, or it is refused.
    detach: the copy of a virtual machine goes without disks that are not in its home.
    """

    destination: str | None = None
    template: bool = False
    linked: bool = False
    detach: bool = False


def clone(
    node: Node,
    ref: str,
    name: str,
    *,
    options: CloneOptions = CloneOptions(),  # noqa: B008  a value
    progress: Progress | None = None,
) -> Environment:
    """Copy the stopped container `ref` under a new name; returns the copy.

    Raises AlreadyRunning, AlreadyMounted, AlreadyExists, NoSpace, Unsupported, Cancelled: nothing
    is left then.
    """
    progress = progress or NoProgress()
    source = node.registry.resolve(ref)
    chosen = options.destination or None
    destination = None if chosen is None else storagepool.directory(node, chosen)
    if source.kind == Kind.VM:
        wanted = machineclone.Wanted(destination, *options[1:])
        return machineclone.clone(node, source, name, wanted, progress)
    copy = _identity(node, source, name, destination)
    with ExitStack() as held:
        held.enter_context(home.reserved(node, copy.uuid, copy.name))
        held.enter_context(node.lease(source, "clone"))
        held.enter_context(node.lease(copy, "clone"))
        provision.repair(node, source)
        lifecycle.require(node, source, "clone")
        home.check_place(node, copy.home)
        conf = configuration(node, source, copy, options)
        with home.born(node, copy, conf, "clone") as staging:
            _copy(node, (source, copy), staging, progress, linked=options.linked)
            progress.check()
    node.publish("ve-create", copy, source=source.uuid)
    return copy


def configuration(
    node: Node, source: Environment, copy: Environment, options: CloneOptions
) -> ConfFile:
    """Return the ve.conf of the copy."""
    old = Config.parse(node.registry.conf_file(source).values())
    conf = node.registry.conf_file(source).copy()
    values: dict[str, str | None] = {
        "VEID": copy.envid,
        "UUID": copy.uuid,
        "NAME": copy.name,
        "VE_PRIVATE": home.private_of(node, copy),
        "VE_ROOT": node.config().ve_root,
        "VE_TYPE": "template" if options.template else None,
        LINKED: source.uuid if options.linked else None,
    }
    fresh = tuple(fresh_interface(interface) for interface in old.network.interfaces)
    values |= old.changed({params.NETIF.field: fresh}).differences(old)
    for key, value in values.items():
        conf.set(key, value)
    return conf


def fresh_interface(interface: NetIf) -> NetIf:
    """Return the interface with addresses and a node-side name that nothing else has.

    The node's side is named after the container's address, as by libvzctl (2.1 of vzctl.md).
    """
    tail = [f"{byte:02x}" for byte in secrets.token_bytes(3)]
    mac = ":".join([OUI, *tail])
    return interface._replace(
        mac=mac,
        host_mac="fe:" + mac[3:],
        host_ifname="veth" + mac.replace(":", "")[4:],
        ifaceid="",
    )


def give_identity(guest: GuestRoot, name: str) -> None:
    """Take from the copied guest what may be only once in the world.

    An empty machine-id is filled at the next boot and is no "first boot" (machine-id(5)).
    """
    if guest.exists("etc/machine-id"):
        guest.write("etc/machine-id", "", mode=0o444)
    guest.remove("var/lib/systemd/random-seed")
    keys = [key for key in guest.names("etc/ssh") if key.startswith("ssh_host_")]
    if not guest.exists(_HOST_KEYS_UNIT):
        _replace_keys(guest, name, keys)
        return
    for key in keys:
        guest.remove(f"etc/ssh/{key}")  # the guest makes its own at the next boot


def _replace_keys(guest: GuestRoot, name: str, keys: list[str]) -> None:
    """Make new host keys of the kinds that are there, on the node, and put them into the guest."""
    kinds = [kind for kind in _KEY_TYPES if f"ssh_host_{kind}_key" in keys]
    fresh: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="pyvz-keys-") as directory:
        for kind in kinds:
            file = Path(directory) / f"ssh_host_{kind}_key"
            try:
                options = ["-q", "-t", kind, "-N", "", "-C", f"root@{name}"]
                run.run(["ssh-keygen", *options, "-f", os.fspath(file)])
            except VZError as error:
                log.warning("%s keeps the SSH host keys of its original: %s", name, error)
                return
            fresh |= _pair(file)
    for key, content in fresh.items():
        guest.write(f"etc/ssh/{key}", content, mode=None)
    for key in keys:
        if key not in fresh:
            guest.remove(f"etc/ssh/{key}")


def _pair(file: Path) -> Mapping[str, bytes]:
    public = file.with_name(file.name + ".pub")
    return {path.name: path.read_bytes() for path in (file, public)}


def _identity(node: Node, source: Environment, name: str, destination: str | None) -> Environment:
    uuid = str(uuid4())
    own = Pools(node.paths).find(source.home)
    if destination is not None:
        private = f"{destination}/$VEID"
    elif own is not None and not own.builtin:
        private = f"{own.path}/$VEID"  # a copy stays in the pool
    else:
        private = pool.private_for(node, _layout_of(source))
    place = provision.place(node, private, uuid)
    return Environment(uuid, uuid, check_name(name), source.kind, place)


def _layout_of(source: Environment) -> str:
    """Return the name of the driver of the disk; empty when there is none."""
    try:
        return storage.find(source.home).name
    except PrivateMissing:
        return ""


def _copy(
    node: Node,
    both: tuple[Environment, Environment],
    staging: Path,
    progress: Progress,
    *,
    linked: bool,
) -> None:
    """Copy all that belongs to the home into `staging`, and make the guest another one."""
    source, copy = both
    provision.furnish(node, staging)
    _copy_scripts(source.home, staging)
    if node.registry.conf_file(source).get("ROOT_DISK") == "no":
        return
    driver = storage.find(source.home)
    if linked:
        driver.linked_clone(source.home, staging, progress)
    else:
        driver.clone(source.home, staging, progress)
    shot.forget_all(staging, savedstates.load(source.home))
    progress.stage(f"Giving {copy.name} an identity of its own")
    # Where `home.abandon` finds it, should we be killed meanwhile.
    root = node.root(copy)
    driver.mount(staging, root)
    try:
        with GuestRoot.open(root) as guest:
            give_identity(guest, copy.name)
    finally:
        driver.umount(staging, root)


def _copy_scripts(source: Path, target: Path) -> None:
    """Copy the action scripts; files only, links are never followed."""
    directory = source / "scripts"
    if not directory.is_dir() or directory.is_symlink():
        return
    for entry in os.scandir(directory):
        if entry.is_file(follow_symlinks=False):
            run.run(["cp", "-a", "--", entry.path, target / "scripts"])
