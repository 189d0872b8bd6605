"""The registry: which environments this node has, and their configuration files.

    <root>/etc/vz/conf/<uuid>.conf  ->  <private>/ve.conf     one link is one registered container
    <root>/etc/vz/conf/101.conf                               a real file of OpenVZ 6, recognised
    <root>/etc/vz/names/<name>      ->  <root>/etc/vz/conf/<uuid>.conf
    <root>/etc/vz/conf/ve-<name>.conf-sample                  samples

The link in conf/ is the commit point of everything: a container is registered exactly while it is
there.  The NAME in ve.conf is the name; links in names/ exist for the original's tools, for scripts
and as the name of a file that has no NAME.  A name link that leads nowhere, or to a file with
another NAME, is a leftover of a crash: it is not believed, and whoever needs the name replaces it.

Order of writes (each step may be the last one before a crash; doing it again finishes it):
  add     ve.conf, name link, conf link*
  save    ve.conf* (temporary, fsync, rename)
  rename  new name link, NAME in ve.conf*, old name link gone
  remove  conf link gone*, name links gone          (* what makes it true)

Changes are serialised by a flock on <root>/var/lib/pyvz/registry.lock (lock order: registry before
environment); reading takes no lock.  Every environment that cannot be understood is listed with a
problem, so that one bad file never hides the others.

A virtual machine is registered the same way; its file is <vmprivate>/<uuid>/vm.conf, and that name
is what makes it one.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid5

from pyvz.errors import (
    AlreadyExists,
    BadValue,
    ConfigError,
    EnvironmentNotFound,
    NotFound,
    UsageError,
)
from pyvz.linux.file import flock, fsync_directory, write_atomic
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import (
    Environment,
    Kind,
    canonical_uuid,
    check_name,
    is_legacy_ctid,
)
from pyvz.model.vzconf import NodeConfig, expand_veid, under
from pyvz.store.nodeconf import Stamp, inherited, node_config, read_conf, stamp
from pyvz.store.paths import Paths

log = logging.getLogger(__name__)

# Gives an environment of OpenVZ 6, which has a number only, a UUID that is always the same.
_LEGACY = UUID("6f1d7a52-51d4-4f0b-9c5e-9d0c1f2a7b10")


class _Entry(NamedTuple):
    """What is remembered of one file in conf/."""

    version: tuple[Stamp | None, Stamp | None]  # of the file, of vz.conf
    environment: Environment
    config: Config
    problem: str
    named: bool  # the file itself has a NAME


class Registry:
    """The environments of one node.  Thread-safe: entries are values, replaced as a whole."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._conf = os.fspath(paths.conf)
        self._entries: dict[str, _Entry] = {}  # by file name in conf/

    def environments(self) -> list[Environment]:
        """Return every registered environment, those with a problem too, ordered by name."""
        found = [entry.environment for entry in self._containers()]
        return sorted(found, key=lambda env: (env.name, env.uuid))

    def snapshot(self) -> list[tuple[Environment, Config, str]]:
        """Return (environment, what peek() has, what problem() tells) of all, ordered by name.

        One look at the disk for all of them: this is what `list` uses.
        """
        found = [(entry.environment, entry.config, entry.problem) for entry in self._containers()]
        return sorted(found, key=lambda row: (row[0].name, row[0].uuid))

    def problem(self, env: Environment) -> str:
        """Return why ENV cannot be used (its status is then `invalid`), or ""."""
        entry = self._find(env.uuid)
        return "" if entry is None else entry.problem

    def resolve(self, ref: str) -> Environment:
        """Return the environment of REF: UUID with or without braces, CTID, or name.

        Ids are looked at before names.  Raises EnvironmentNotFound.
        """
        uuid = canonical_uuid(ref)
        if uuid is not None and (entry := self._find(uuid)):
            return entry.environment
        if not is_legacy_ctid(ref) and uuid is None and (found := self._find_name(ref)):
            return found
        environments = self.environments()
        for ids in (True, False):
            for env in environments:
                if ref == (env.envid if ids else env.name):
                    return env
        raise EnvironmentNotFound(f"There is no environment '{ref}' on this node")

    def config(self, env: Environment) -> Config:
        """Return the parameters of ENV.  Raises ConfigError for a value that cannot be understood.

        Use peek() to list: it has what can be understood.
        """
        entry = self._entry(env)
        if entry.problem:
            raise ConfigError(entry.problem)
        if entry.config.problems:
            raise ConfigError(entry.config.problems[0])
        return entry.config

    def peek(self, env: Environment) -> Config:
        """Return what can be understood of the parameters of ENV; never fails for bad content."""
        return self._entry(env).config

    def conf_file(self, env: Environment) -> ConfFile:
        """Return the configuration file of ENV, fresh from disk; ConfigError when unreadable."""
        return read_conf(self.config_path(env))

    def config_path(self, env: Environment) -> Path:
        """Return the path in /etc/vz/conf that stands for ENV (a link, or an old real file)."""
        link = self._paths.conf / f"{env.uuid}.conf"
        if not os.path.lexists(link) and is_legacy_ctid(env.envid):
            return self._paths.conf / f"{env.envid}.conf"
        return link

    def node_config(self) -> NodeConfig:
        """Return vz.conf; ConfigError for a value that cannot be understood."""
        return node_config(self._paths)

    def sample(self, name: str) -> ConfFile:
        """Return the sample configuration NAME; NotFound when there is none."""
        path = self._paths.conf / f"ve-{name}.conf-sample"
        if "/" in name or not path.is_file():
            raise NotFound(f"There is no sample configuration '{name}' ({path})")
        return read_conf(path)

    def samples(self) -> list[str]:
        """Return the names of the sample configurations."""
        found = self._paths.conf.glob("ve-*.conf-sample")
        return sorted(p.name.removeprefix("ve-").removesuffix(".conf-sample") for p in found)

    def add(self, env: Environment, conf: ConfFile) -> Environment:
        """Register ENV with the configuration CONF, which is written into its home.

        Adding what is registered at the same place again is fine (a crash came between).  Raises
        AlreadyExists for a name or id that is in use, BadValue for a bad name, ConfigError for a
        CONF that cannot be understood.
        """
        check_name(env.name)
        conf = conf.copy()
        conf.set("VEID", env.envid)
        conf.set("UUID", env.uuid)
        conf.set("NAME", env.name)
        target = env.conf
        Config.parse(conf.values(), str(target))
        link = self._paths.conf / f"{env.uuid}.conf"
        with self._lock():
            self._refuse_taken(env, env.name)
            if os.path.lexists(link) and not _leads_to(link, target):
                raise AlreadyExists(f"The id {env.uuid} is registered already, at {_read(link)}")
            _write(target, conf)
            self._link_name(env.name, env.uuid)
            _symlink(target, link)
        return env

    def attach(self, env: Environment) -> None:
        """Register ENV with the configuration that its home has; nothing of it is changed.

        Attaching again is fine.  Raises AlreadyExists as add() does.
        """
        link = self._paths.conf / f"{env.uuid}.conf"
        with self._lock():
            self._refuse_taken(env, env.name)
            if os.path.lexists(link) and not _leads_to(link, env.conf):
                raise AlreadyExists(f"The id {env.uuid} is registered already, at {_read(link)}")
            self._link_name(env.name, env.uuid)
            _symlink(env.conf, link)

    def save(self, env: Environment, conf: ConfFile) -> None:
        """Write CONF over the configuration of ENV.

        Raises ConfigError for a CONF that cannot be understood; UsageError when it has another
        name, which is what rename() is for.
        """
        path = self.config_path(env)
        Config.parse(conf.values(), str(path))
        if (conf.get("NAME") or env.name) != env.name:
            raise UsageError(f"The name of {env.name} is changed by renaming it")
        # The link stays: what it leads to is written.
        _write(path.resolve(), conf)

    def rename(self, env: Environment, new_name: str) -> Environment:
        """Give ENV another name; AlreadyExists when another one is called or numbered so."""
        check_name(new_name)
        renamed = env._replace(name=new_name)
        with self._lock():
            self._refuse_taken(renamed, new_name)
            path = self.config_path(env)
            conf = read_conf(path)
            self._link_name(new_name, path.stem)
            conf.set("NAME", new_name)
            _write(path.resolve(), conf)
            self._drop_names(path, keep=new_name)
        return renamed

    def remove(self, env: Environment, *, keep_files: bool) -> None:
        """Unregister ENV; being gone already is fine.  The private area is left to the caller.

        keep_files: it will be registered again: an old real file moves to <home>/ve.conf.
        Otherwise such a file is renamed to <id>.conf.destroyed, as the original does.
        """
        with self._lock():
            path = self.config_path(env)
            if path.is_symlink():
                path.unlink()
            elif path.exists():
                aside = path.with_name(path.name + ".destroyed")
                home = env.home / "ve.conf"
                path.rename(home if keep_files and env.home.is_dir() else aside)
            self._drop_names(path, keep="")
            self._entries.pop(path.name, None)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the registry's lock; every change takes milliseconds, so 10 s is for ever."""
        self._paths.lib.mkdir(mode=0o755, parents=True, exist_ok=True)
        with flock(self._paths.lib / "registry.lock", timeout=60.0):
            yield

    def _containers(self) -> list[_Entry]:
        """Return every container once, read again only where its file has changed."""
        shared = stamp(self._paths.vz_conf)
        files = [name for name in _listing(self._paths.conf) if _file_id(name)]
        seen: dict[str, _Entry] = {}
        for name in files:
            entry = self._load(name, shared)
            first = seen.setdefault(entry.environment.uuid, entry)
            if first is not entry:
                log.warning("%s is one more file of %s and is ignored", name, first.environment)
        for gone in self._entries.keys() - set(files):
            self._entries.pop(gone, None)
        found = list(seen.values())
        return found if all(entry.named for entry in found) else self._named(found)

    def _named(self, entries: list[_Entry]) -> list[_Entry]:
        """Give those whose file has no NAME the name of the link that leads to them."""
        names = {
            Path(_read(self._paths.names / name)).name: name for name in _listing(self._paths.names)
        }
        found = []
        for entry in entries:
            env = entry.environment
            link = names.get(f"{env.uuid}.conf") or names.get(f"{env.envid}.conf")
            if link and not entry.named:
                found.append(entry._replace(environment=env._replace(name=link)))
            else:
                found.append(entry)
        return found

    def _find(self, uuid: str) -> _Entry | None:
        """Return the entry of a UUID, fast where its file is called so."""
        name = f"{uuid}.conf"
        if os.path.lexists(f"{self._conf}/{name}"):
            entry = self._load(name, stamp(self._paths.vz_conf))
            if entry.named:
                return entry
        return next((x for x in self._containers() if x.environment.uuid == uuid), None)

    def _find_name(self, name: str) -> Environment | None:
        """Return who NAME belongs to as far as its link tells; the link is not believed blindly."""
        file = Path(_read(self._paths.names / name)).name if "/" not in name else ""
        if not _file_id(file) or not os.path.lexists(self._paths.conf / file):
            return None
        env = self._load(file, stamp(self._paths.vz_conf)).environment
        return env if env.name == name else None

    def _entry(self, env: Environment) -> _Entry:
        entry = self._find(env.uuid)
        if entry is None:
            raise EnvironmentNotFound(f"{env.name} is not registered on this node any more")
        return entry

    def _load(self, name: str, shared: Stamp | None) -> _Entry:
        """Return the entry of a file in conf/, from memory when nothing has changed."""
        version = (stamp(f"{self._conf}/{name}"), shared)
        known = self._entries.get(name)
        if known is None or known.version != version:
            known = self._read_entry(self._paths.conf / name, version)
            self._entries[name] = known
            for problem in filter(None, (known.problem, *known.config.problems)):
                log.warning("%s", problem)
        return known

    def _read_entry(self, path: Path, version: tuple[Stamp | None, Stamp | None]) -> _Entry:
        problem, conf = "", ConfFile()
        try:
            if version[0] is None and path.is_symlink():
                problem = f"{path}: the link leads nowhere ({_read(path)})"
            else:
                conf = read_conf(path)
        except ConfigError as error:
            problem = error.message
        values = conf.values()
        config = self._parse(values, str(path))
        if not problem and len(config.unknown) == len(values):
            problem = f"{path} is not the configuration of a container"
        env = self._identity(path, config)
        return _Entry(version, env, config, problem, config.is_set("identity.name"))

    def _parse(self, values: Mapping[str, str], source: str) -> Config:
        """Read what can be read; an error of vz.conf is one of every container's config()."""
        try:
            shared = inherited(self._paths)
        except ConfigError as error:
            config = Config.parse(values, source, lenient=True)
            return config.with_problems((error.message,))
        return Config.parse(values, source, inherited=shared, lenient=True)

    def _identity(self, path: Path, config: Config) -> Environment:
        """Return who the file at PATH is about: its own name decides the id."""
        identity = config.identity
        uuid = canonical_uuid(path.stem)
        if uuid is None:
            uuid = identity.uuid or str(uuid5(_LEGACY, path.stem))
            envid = path.stem
        else:
            envid = identity.veid or ""
            envid = envid if is_legacy_ctid(envid) else uuid
        return Environment(
            uuid=uuid,
            envid=envid,
            name=identity.name or envid,
            kind=_kind(path),
            home=self._home(path, identity.private, envid),
        )

    def _home(self, path: Path, private: str | None, envid: str) -> Path:
        """Return the private area: where the link leads, else what VE_PRIVATE says."""
        if path.is_symlink():
            # A link may be relative, as some tools make them; ve.conf itself is not resolved.
            return Path(os.path.normpath(path.parent / _read(path))).parent
        try:
            written = private or node_config(self._paths).ve_private
            return under(self._paths.root, expand_veid(written, envid))
        except (BadValue, ConfigError):
            return self._paths.private / envid

    def _refuse_taken(self, env: Environment, name: str) -> None:
        """Raise AlreadyExists when NAME or an id of ENV means another environment."""
        for entry in self._containers():
            other = entry.environment
            if other.uuid == env.uuid:
                continue
            if name in {other.name, other.envid} or canonical_uuid(name) == other.uuid:
                raise AlreadyExists(f"The name '{name}' is in use by {other.name} ({other.uuid})")
            if env.envid in {other.envid, other.name}:
                raise AlreadyExists(f"The id {env.envid} is in use by {other.name} ({other.uuid})")

    def _link_name(self, name: str, stem: str) -> None:
        _symlink(self._paths.conf / f"{stem}.conf", self._paths.names / name)

    def _drop_names(self, conf: Path, *, keep: str) -> None:
        """Remove every name link to CONF but that of the name KEEP."""
        for name in _listing(self._paths.names):
            link = self._paths.names / name
            if name != keep and Path(_read(link)).name == conf.name:
                link.unlink(missing_ok=True)


@lru_cache(maxsize=4096)
def _file_id(name: str) -> str | None:
    """Return the id of a configuration file by its name, None when it is another kind of file.

    0.conf is the node itself, of the days of user beancounters.
    """
    stem, dot, _ = name.rpartition(".conf")
    if not dot or not name.endswith(".conf"):
        return None
    return stem if canonical_uuid(stem) or is_legacy_ctid(stem) else None


def _listing(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries)
    except FileNotFoundError:
        return []


def _read(link: Path) -> str:
    """Return the text of a symbolic link, "" when it is none."""
    try:
        return str(link.readlink())
    except (OSError, ValueError):  # ValueError: a null byte in what somebody typed
        return ""


def _kind(path: Path) -> Kind:
    """Return the kind of the environment whose file in conf/ is PATH."""
    return Kind.VM if Path(_read(path)).name == Kind.VM.conf_name else Kind.CT


def _leads_to(link: Path, target: Path) -> bool:
    return os.path.normpath(link.parent / _read(link)) == os.path.normpath(target)


def _symlink(target: Path, link: Path) -> None:
    """Make LINK lead to TARGET, atomically replacing a link that was there."""
    if _read(link) == os.fspath(target):
        return
    link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = link.with_name(f".{os.getpid()}.{threading.get_ident()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    try:
        temporary.rename(link)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(link.parent)


def _write(path: Path, conf: ConfFile) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, conf.render().encode("utf-8", "surrogateescape"), 0o644)
