r"""Storage pools: named places of the node in which the homes of containers are.

    <etc>/pools/<name>.conf

        DRIVER="btrfs"                 the storage driver of new containers in it
        DIRECTORY="/data/ct"           parent directory of the homes, below the node's root
        OPTIONS="floor=2G,quota=yes"   of the pool and its driver, name=value
        DEFAULT="yes"                  new containers are made here unless --pool says else

Keys that we do not know stay in the file.  Files are written whole (atomically) under the lock
`<etc>/pools/.lock`; readers take no lock.  When two files say DEFAULT (somebody wrote it by hand,
or we died between two writes) the one written last counts.

Without a file of that name there is the pool `default` all the same: the driver VELAYOUT and the
parent of VE_PRIVATE of vz.conf.  It is the default as long as no other says that it is.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import AlreadyExists, BadValue, ConfigError, NotFound
from pyvz.linux import file
from pyvz.model.conffile import ConfFile
from pyvz.model.vzconf import under
from pyvz.store import nodeconf
from pyvz.store.paths import Paths

BUILTIN = "default"
DRIVER_OF_LAYOUT = {"4": "simfs", "5": "ploop"}  # VELAYOUT as numbers, libvzctl
LOCK_TIMEOUT = 60.0  # seconds that a writer waits for another one

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_WORD = re.compile(r"[a-z][a-z0-9_-]*")
_VALUE = re.compile(r"[^,\"\\`$\x00-\x1f\x7f]*")
_SUFFIX = ".conf"


class Pool(NamedTuple):
    """One pool.  path: the real directory on the node.  builtin: it has no file of its own."""

    name: str
    driver: str
    path: Path
    options: Mapping[str, str]
    default: bool = False
    builtin: bool = False


class Pools:
    """The pools of one node, read from its files at every call."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._directory = paths.etc / "pools"

    def all(self) -> list[Pool]:
        """Return every pool by name; a file that cannot be understood is left out (`problems`)."""
        found, _ = self._read_all()
        return found

    def problems(self) -> list[tuple[str, str]]:
        """Return (name, what is wrong) of the files that cannot be understood."""
        _, problems = self._read_all()
        return problems

    def get(self, name: str) -> Pool:
        """Return the pool called `name`; raises NotFound, ConfigError."""
        for pool in self.all():
            if pool.name == name:
                return pool
        if self._file(check_name(name)).exists():
            self._read(name)  # says what is wrong with it
        known = ", ".join(pool.name for pool in self.all())
        raise NotFound(f"There is no storage pool '{name}'", hint=f"Pools: {known}.")

    def default(self) -> Pool:
        """Return the pool in which containers are made when nobody chooses one."""
        return next(pool for pool in self.all() if pool.default)

    def find(self, home: Path) -> Pool | None:
        """Return the pool in which the home is (its parent directory is the pool's), or None."""
        parent = os.path.realpath(home.parent)
        pools = self.all()
        return next((pool for pool in pools if os.path.realpath(pool.path) == parent), None)

    def add(self, pool: Pool) -> None:
        """Write a new pool; raises AlreadyExists, BadValue, NoSpace."""
        check_name(pool.name)
        with self._locked():
            path = self._file(pool.name)
            if path.exists():
                raise AlreadyExists(f"There is a storage pool '{pool.name}' already")
            self._write(path, pool, ConfFile.parse(""))
            if pool.default:
                self._only_default(pool.name)

    def save(self, pool: Pool) -> None:
        """Write a changed pool over its file; the one without a file gets one."""
        check_name(pool.name)
        with self._locked():
            path = self._file(pool.name)
            conf = nodeconf.read_conf(path) if path.exists() else ConfFile.parse("")
            self._write(path, pool, conf)
            if pool.default:
                self._only_default(pool.name)

    def remove(self, name: str) -> None:
        """Forget a pool; its files are not touched.  Idempotent."""
        with self._locked():
            self._file(check_name(name)).unlink(missing_ok=True)
            file.fsync_directory(self._directory)

    # -- files

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}{_SUFFIX}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with file.flock(self._directory / ".lock", timeout=LOCK_TIMEOUT):
            yield

    def _names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            names = [path.stem for path in self._directory.glob(f"*{_SUFFIX}")]
            return sorted(name for name in names if _NAME.fullmatch(name))
        return []

    def _read_all(self) -> tuple[list[Pool], list[tuple[str, str]]]:
        found: list[Pool] = []
        problems: list[tuple[str, str]] = []
        for name in self._names():
            try:
                found.append(self._read(name))
            except FileNotFoundError:
                continue  # removed since it was listed
            except ConfigError as error:
                problems.append((name, error.message))
        if all(pool.name != BUILTIN for pool in found):
            found.append(self._builtin())
        chosen = self._chosen(found)
        found = [pool._replace(default=pool.name == chosen) for pool in found]
        return sorted(found, key=lambda pool: pool.name), problems

    def _chosen(self, pools: list[Pool]) -> str:
        """Return the name of the default pool."""
        claims = [pool.name for pool in pools if pool.default and not pool.builtin]
        return max(claims, key=lambda name: nodeconf.stamp(self._file(name)) or (), default=BUILTIN)

    def _read(self, name: str) -> Pool:
        path = self._file(name)
        conf = nodeconf.read_conf(path)
        driver, directory = conf.get("DRIVER"), conf.get("DIRECTORY")
        if not driver or not directory:
            raise ConfigError(f"{path}: DRIVER and DIRECTORY are needed")
        try:
            place = under(self._paths.root, directory)
            options = parse_options(conf.get("OPTIONS") or "")
        except BadValue as error:
            raise ConfigError(f"{path}: {error.message}") from error
        return Pool(name, driver, place, options, default=conf.get("DEFAULT") == "yes")

    def _builtin(self) -> Pool:
        config = nodeconf.node_config(self._paths)
        word = config.layout.partition(":")[0].lower()
        place = under(self._paths.root, os.path.dirname(config.ve_private))
        return Pool(BUILTIN, DRIVER_OF_LAYOUT.get(word, word), place, {}, builtin=True)

    def _write(self, path: Path, pool: Pool, conf: ConfFile) -> None:
        place = pool.path
        if place.is_relative_to(self._paths.root):
            place = Path("/") / place.relative_to(self._paths.root)
        conf.set("DRIVER", pool.driver)
        conf.set("DIRECTORY", os.fspath(place))
        conf.set("OPTIONS", format_options(pool.options))
        conf.set("DEFAULT", "yes" if pool.default else "no")
        file.write_atomic(path, conf.render())

    def _only_default(self, chosen: str) -> None:
        """Take DEFAULT from all pools but one."""
        for name in self._names():
            conf = nodeconf.read_conf(self._file(name))
            if name != chosen and conf.get("DEFAULT") == "yes":
                conf.set("DEFAULT", "no")
                file.write_atomic(self._file(name), conf.render())


def check_name(name: str) -> str:
    """Return `name` when it can be that of a pool; raises BadValue."""
    if not _NAME.fullmatch(name):
        raise BadValue(
            f"'{name}' cannot be the name of a storage pool",
            hint="Up to 32 letters, digits, dots, dashes and underscores.",
        )
    return name


def parse_options(text: str) -> dict[str, str]:
    """Return the options that `text` (name=value,...) says; raises BadValue."""
    found: dict[str, str] = {}
    for part in filter(None, (word.strip() for word in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not _WORD.fullmatch(key) or not _VALUE.fullmatch(value):
            raise BadValue(f"'{part}' is not an option of the form name=value")
        found[key] = value
    return found


def format_options(options: Mapping[str, str]) -> str:
    """Return the text of `options`, for OPTIONS."""
    return ",".join(f"{key}={value}" for key, value in options.items())
