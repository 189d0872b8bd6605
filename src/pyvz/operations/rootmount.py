"""The root disk mounted as its configuration says: mount options, user quota, number of inodes.

MOUNT_OPTS and NOATIME: what belongs to the mount works with every driver, what belongs to the
file system only where it is the container's own.  QUOTAUGIDLIMIT: more than 0 switches the quota of
users and groups on, unless DISK_QUOTA says no; a kernel that has none does not keep a container
from starting.  DISKINODES: as many inodes as the file system can be held to.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import cast

from pyvz.errors import MountError, Unsupported, VZError
from pyvz.linux import mountwords, userquota
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.operations import home
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.units import UNLIMITED

log = logging.getLogger(__name__)


def mount(node: Node, env: Environment, root: Path, *, readonly: bool) -> None:
    """Mount the root disk at `root`; raises MountError, PrivateMissing; nothing is left then."""
    config = node.registry.config(env)
    driver = storage.find(env.home)
    words = mountwords.parse(_words(config))
    if driver.capabilities(env.home).mount_options:
        options = storage.MountOptions(words.rest, quota=_wants_quota(node, config))
        many = cast("storage.ManyDisks", driver)
        many.mount(env.home, root, readonly=readonly, options=options)
    else:
        if words.rest:
            log.warning("%s: MOUNT_OPTS %s: not of its own file system", env.name, words.rest)
        driver.mount(env.home, root, readonly=readonly)
    try:
        if words.attributes:
            mountwords.apply(os.fspath(root), words.attributes)
    except OSError as error:
        driver.umount(env.home, root)
        raise MountError(f"{root} could not be mounted so: {error.strerror}") from error
    wanted = inodes(config)
    if wanted and not readonly:
        try:
            driver.limit_inodes(env.home, wanted)
        except (VZError, OSError) as error:  # it is a limit of the sample, most of the time
            log.debug("%s: DISKINODES: %s", env.name, error)


def check(env: Environment, old: Config, new: Config) -> None:
    """Raise Unsupported when the quota that is newly asked for cannot be kept here."""
    if not new.disk.quota_users or old.disk.quota_users:
        return
    driver = storage.find(env.home)
    if not driver.capabilities(env.home).mount_options:
        raise Unsupported(
            f"--quotaugidlimit: a container of layout {driver.name} has no file system of its own",
            hint="A container on a ploop image has one; see prlctl convert --layout.",
        )
    kind = cast("storage.ManyDisks", driver).fstype(env.home)
    if why := userquota.missing(kind):
        raise Unsupported(
            f"--quotaugidlimit: users inside cannot have a quota on this node: {why}",
            details="Debian's kernels have it (CONFIG_XFS_QUOTA; CONFIG_QFMT_V2 for ext4).",
        )


def limit_inodes(env: Environment, old: Config, new: Config) -> None:
    """Have the root disk keep a DISKINODES that is new; raises Unsupported, BadValue."""
    wanted = inodes(new)
    if new.disk.inodes is None or wanted == inodes(old):
        return
    with home.storage_errors(f"The inodes of {env.name} could not be limited"):
        storage.find(env.home).limit_inodes(env.home, wanted)


def inodes(config: Config) -> int | None:
    """Return how many DISKINODES allows, None for as many as there is space for."""
    pair = config.disk.inodes
    return None if pair is None or pair.limit >= UNLIMITED else pair.limit


def _words(config: Config) -> list[str]:
    words = config.disk.mount_options.split(",") if config.disk.mount_options else []
    return [*words, "noatime"] if config.disk.noatime else words


def _wants_quota(node: Node, config: Config) -> bool:
    keeps = node.config().disk_quota and config.disk.quota is not False
    return bool(config.disk.quota_users) and keeps
