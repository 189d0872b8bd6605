"""Make a private area known to this node, and forget one.  The files stay where they are.

`.owner` in the home names the node to which it belongs.  It is written always and asked only on
file systems that several nodes share, as the original does (libvzctl vz.c, vzctl2_env_register):
there, a container that runs on another node would be started twice.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import uuid4

from pyvz.errors import (
    AlreadyExists,
    BadValue,
    ConfigError,
    InvalidState,
    PrivateMissing,
    StorageError,
)
from pyvz.linux import mount
from pyvz.linux.file import read_text_limited, write_atomic
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind, canonical_uuid, check_name, is_legacy_ctid
from pyvz.operations import home, lifecycle, provision
from pyvz.operations.node import Node
from pyvz.storage import base as storage

log = logging.getLogger(__name__)

_SHARED = ("nfs", "ceph", "gfs2", "ocfs2", "lustre", "cifs", "9p", "virtiofs", "glusterfs", "fuse.")


def register(  # noqa: PLR0913  the fields of the API call
    node: Node,
    path: str,
    *,
    uuid: str | None = None,
    preserve_uuid: bool = False,
    force: bool = False,
    name: str | None = None,
    ctid: str | None = None,
) -> Environment:
    """Register the container whose home is `path`; returns what it is now.

    uuid: its new UUID; preserve_uuid: the one in its ve.conf; neither: a fresh one.
    name, ctid: instead of those in ve.conf.  force: although it belongs to another node.
    A name of ve.conf that is taken gets a number; one that was asked for raises AlreadyExists.
    Raises PrivateMissing, ConfigError, InvalidState (owner), BadValue: nothing was changed then.
    """
    place = _checked_place(node, path)
    kind = _kind(place)
    text = read_text_limited(place / kind.conf_name)
    conf = ConfFile.parse(text)
    Config.parse(conf.values(), source=os.fspath(place / kind.conf_name))
    if kind == Kind.CT and conf.get("ROOT_DISK") != "no":
        storage.find(place)
    if not force:
        _check_owner(node, place)
    env = _identity(node, place, conf, (uuid, preserve_uuid, name, ctid))
    with ExitStack() as held:
        held.enter_context(home.reserved(node, env.uuid, env.envid, env.name))
        held.enter_context(node.lease(env, "register"))
        _enter(node, env, conf, text)
    node.publish("ve-register", env)
    return env


def unregister(node: Node, ref: str) -> Environment:
    """Forget a container that neither runs nor is mounted; its files stay.

    Raises AlreadyRunning, AlreadyMounted.
    """
    env = node.registry.resolve(ref)
    with node.lease(env, "unregister"):
        provision.repair(node, env)
        lifecycle.require(node, env, "unregister")
        node.registry.remove(env, keep_files=True)
        home.forget(node, env)
        with suppress(FileNotFoundError):
            (env.home / home.OWNER).unlink()
    node.publish("ve-unregister", env)
    return env


def _enter(node: Node, env: Environment, conf: ConfFile, former: str) -> None:
    """Write owner, ve.conf and links; ve.conf is as it was when something fails."""
    for key, value in {
        "VEID": env.envid,
        "UUID": env.uuid,
        "NAME": env.name,
        "VE_PRIVATE": home.private_of(node, env),
        "VE_ROOT": home.explicit(env, node.config().ve_root),
    }.items():
        conf.set(key, value)
    with ExitStack() as undo, home.storage_errors(f"{env.home} could not be registered"):
        undo.callback(_restore, env.home / home.OWNER, _content(env.home / home.OWNER))
        home.take_ownership(node, env.home)
        undo.callback(_restore, env.conf, former)
        undo.callback(node.registry.remove, env, keep_files=True)
        node.registry.add(env, conf)
        undo.pop_all()


def _kind(place: Path) -> Kind:
    """Return what the home at PLACE is of, by the file that is there."""
    return Kind.VM if (place / Kind.VM.conf_name).exists() else Kind.CT


def _checked_place(node: Node, path: str) -> Path:
    """Return the real directory; refuse what cannot be, or must not be, a container's home."""
    place = Path(os.path.realpath(path))
    if not place.is_dir():
        raise PrivateMissing(
            f"There is no directory {path}",
            hint="A disk image or OVA becomes a machine by: prlctl create NAME --vmtype vm "
            f"--import {path}"
            if place.is_file()
            else "",
        )
    conf = place / _kind(place).conf_name
    if not conf.exists() or not stat.S_ISREG(conf.lstat().st_mode):
        raise PrivateMissing(
            f"{path} is not the private area of a container: it has no {conf.name} of its own"
        )
    if place.stat().st_uid != 0 or conf.stat().st_uid != 0:
        raise StorageError(f"{path} does not belong to root and was not registered")
    for env in node.registry.environments():
        real = env.home.resolve()
        if place == real:
            raise AlreadyExists(f"{path} is registered already: it is '{env.name}' ({env.uuid})")
        # What lies in a container's own files was written by its users, ve.conf included.
        if place.is_relative_to(real) or real.is_relative_to(place):
            raise StorageError(f"{path} and the container '{env.name}' lie inside each other")
    if not place.is_relative_to(node.paths.root):
        raise BadValue(f"{path} is outside this node ({node.paths.root})")
    if place.is_relative_to(node.paths.ve_root.resolve()):
        raise StorageError(f"{path} lies in the files of a container and was not registered")
    return place


def _identity(
    node: Node,
    place: Path,
    conf: ConfFile,
    wanted: tuple[str | None, bool, str | None, str | None],
) -> Environment:
    uuid, preserve, name, ctid = wanted
    if uuid is not None and preserve:
        raise BadValue("Either a UUID is given or the present one is kept, not both")
    text = uuid if uuid is not None else conf.get("UUID") or "" if preserve else str(uuid4())
    found = canonical_uuid(text)
    if found is None:
        raise (BadValue if uuid else ConfigError)(f"'{text}' in {place} is not a UUID")
    if ctid is not None and not is_legacy_ctid(ctid):
        raise BadValue(f"'{ctid}' is not a container id")
    former = conf.get("VEID") or ""
    if ctid is None and is_legacy_ctid(former) and not home.taken(node, former):
        ctid = former
    envid = found if ctid is None else str(int(ctid))
    label = check_name(name) if name else _free_name(node, conf.get("NAME") or envid)
    return Environment(found, envid, label, _kind(place), place)


def _free_name(node: Node, name: str) -> str:
    """Return `name`, with a number when it is taken (libvzctl name.c, gen_uniq_name)."""
    check_name(name)
    candidate, number = name, 0
    while home.taken(node, candidate):
        number += 1
        candidate = f"{name}-{number}"
    if number:
        log.warning("the name '%s' is taken: registering as '%s'", name, candidate)
    return candidate


def _check_owner(node: Node, place: Path) -> None:
    if not mount.holding_mount(place).fstype.startswith(_SHARED):
        return
    owner = (_content(place / home.OWNER) or "").strip()
    if owner and owner != home.owner_id(node):
        raise InvalidState(
            f"{place} belongs to another node ({owner})",
            hint="When it does not run there any more: register --force.",
        )


def _content(path: Path) -> str | None:
    try:
        return read_text_limited(path)
    except FileNotFoundError:
        return None


def _restore(path: Path, former: str | None) -> None:
    if former is None:
        path.unlink(missing_ok=True)
    else:
        write_atomic(path, former)
