"""vz.conf of a node on disk: read when it has changed, else remembered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pyvz.errors import ConfigError
from pyvz.linux.file import read_text_limited
from pyvz.model.conffile import ConfFile
from pyvz.model.config import inheritable
from pyvz.model.vzconf import NodeConfig, under
from pyvz.store.paths import Paths

Stamp = tuple[int, int, int]  # modification time in ns, size, inode
_DEFAULTS = NodeConfig()


class _Known(NamedTuple):
    version: Stamp
    config: NodeConfig
    inherited: Mapping[str, Any]


_cache: dict[Path, _Known] = {}  # a value per path, replaced as a whole


def stamp(path: str | Path) -> Stamp | None:
    """Return what tells one version of a file from the next, or None when it is not there."""
    try:
        status = os.stat(path)  # noqa: PTH116  (called 200 times for one list)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_conf(path: Path) -> ConfFile:
    """Return the configuration file at PATH; ConfigError when it cannot be read."""
    try:
        text = read_text_limited(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return ConfFile.parse(text)


def node_config(paths: Paths) -> NodeConfig:
    """Return the node's configuration; a missing vz.conf means the defaults.

    Raises ConfigError, naming file and key, for a value that cannot be understood.
    """
    known = _load(paths.vz_conf)
    return _DEFAULTS if known is None else known.config


def inherited(paths: Paths) -> Mapping[str, Any]:
    """Return {field: value} that vz.conf gives to every container; raises ConfigError."""
    known = _load(paths.vz_conf)
    return {} if known is None else known.inherited


def lock_directory(paths: Paths) -> Path:
    """Return LOCKDIR of the node, also when some other key of vz.conf cannot be understood.

    A typing error in vz.conf must neither stop the node from working on containers nor, worse,
    let two tools lock in two places.
    """
    try:
        directory = node_config(paths).lockdir
    except ConfigError:
        directory = read_conf(paths.vz_conf).get("LOCKDIR") or _DEFAULTS.lockdir
    return under(paths.root, directory)


def _load(path: Path) -> _Known | None:
    version = stamp(path)
    if version is None:
        return None
    known = _cache.get(path)
    if known is None or known.version != version:
        values = read_conf(path).values()
        source = str(path)
        known = _Known(version, NodeConfig.parse(values, source), inheritable(values, source))
        _cache[path] = known
    return known
