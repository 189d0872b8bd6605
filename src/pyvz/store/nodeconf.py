"""vz.conf of a node on disk: read when it has changed, else remembered."""

from __future__ import annotations

from pathlib import Path

from pyvz.errors import ConfigError
from pyvz.model.conffile import ConfFile
from pyvz.model.vzconf import NodeConfig, under
from pyvz.store.paths import Paths

_Stamp = tuple[int, int, int]  # modification time in ns, size, inode
_cache: dict[Path, tuple[_Stamp, NodeConfig]] = {}  # a value per path, replaced as a whole
_DEFAULTS = NodeConfig()


def stamp(path: Path) -> _Stamp | None:
    """Return what tells one version of a file from the next, or None when it is not there."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_conf(path: Path) -> ConfFile:
    """Return the configuration file at PATH; ConfigError when it cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return ConfFile.parse(text)


def node_config(paths: Paths) -> NodeConfig:
    """Return the node's configuration; a missing vz.conf means the defaults.

    Raises ConfigError, naming file and key, for a value that cannot be understood.
    """
    now = stamp(paths.vz_conf)
    if now is None:
        return _DEFAULTS
    known = _cache.get(paths.vz_conf)
    if known is not None and known[0] == now:
        return known[1]
    config = NodeConfig.parse(read_conf(paths.vz_conf).values(), str(paths.vz_conf))
    _cache[paths.vz_conf] = (now, config)
    return config


def lock_directory(paths: Paths) -> Path:
    """Return LOCKDIR of the node."""
    return under(paths.root, node_config(paths).lockdir)
