"""The columns of lists: one small function per field name, computed only when asked for.

The names, types and units are those of `cli/fields.py`; a test holds the two together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from pyvz.container.runtime import Init
from pyvz.errors import VZError
from pyvz.linux import socketcount
from pyvz.linux.cgroup_counters import Counters
from pyvz.model.beancounter import NAMES
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.model.grammar_net import NetIf
from pyvz.model.status import Status
from pyvz.model.usage import Usage
from pyvz.operations import beancounters, machineaddresses
from pyvz.operations.node import Node, StatusReader
from pyvz.storage import base as storage
from pyvz.store.state import RunState

ALIVE = frozenset({Status.RUNNING, Status.PAUSED, Status.STARTING, Status.STOPPING})
_AT_ONCE = 64  # guests that are asked at the same time


class Source:
    """Where the fields of one environment come from; each part is read at most once."""

    def __init__(
        self, node: Node, env: Environment, statuses: StatusReader, config: Config | None = None
    ) -> None:
        self.node = node
        self.env = env
        self._statuses = statuses
        self._config = config

    @cached_property
    def status(self) -> Status:
        """The state that the kernel shows."""
        return self._statuses.of(self.env)

    @property
    def init(self) -> Init | None:
        """The init of a container that runs."""
        return self._statuses.init(self.env)

    @cached_property
    def config(self) -> Config:
        """The configuration; what cannot be understood in it counts as not set."""
        return self._config or self.node.registry.peek(self.env)

    @cached_property
    def usage(self) -> Usage:
        """What it uses of the node; all unknown while it does not run."""
        if self.status not in ALIVE:
            return Usage()
        try:
            return self.node.cgroups.usage(self.env.uuid)
        except OSError:  # it ended between our two looks
            return Usage()

    @cached_property
    def counters(self) -> Counters:
        """What else its cgroups count; all unknown while it does not run."""
        if self.status not in ALIVE:
            return Counters()
        try:
            return self.node.cgroups.counters(self.env.uuid)
        except OSError:
            return Counters()

    @cached_property
    def sockets(self) -> socketcount.Sockets | None:
        """Its sockets."""
        alive = self.state is not None and self.status in ALIVE
        return socketcount.of(self.state.pid) if alive and self.state else None

    @cached_property
    def files(self) -> int | None:
        """Descriptors that its processes have open."""
        if self.status not in ALIVE:
            return None
        return beancounters.count_files(self.node.cgroups.pids(self.env.uuid))

    @cached_property
    def state(self) -> RunState | None:
        """The run state record."""
        return RunState.load(self.node.paths, self.env.uuid)

    @cached_property
    def told(self) -> list[str]:
        """The addresses that the guest of a machine that runs says it has; see `hear`."""
        return machineaddresses.inside(self.node, self.env) if _talks(self) else []

    @property
    def bridged(self) -> tuple[NetIf, ...]:
        """Its interfaces but the routed one."""
        interfaces: tuple[NetIf, ...] = self.config.network.interfaces or ()
        return tuple(nic for nic in interfaces if nic.ifname != "venet0")


def _talks(source: Source) -> bool:
    return source.env.kind == Kind.VM and source.status == Status.RUNNING


def hear(sources: Iterable[Source]) -> None:
    """Have the guests of all machines tell their addresses at the same time.

    One that keeps silent holds up a list once, however many of them there are.
    """
    talking = [source for source in sources if _talks(source)]
    if len(talking) < 2:
        return
    with ThreadPoolExecutor(min(_AT_ONCE, len(talking)), "told") as pool:
        found = pool.map(lambda source: machineaddresses.inside(source.node, source.env), talking)
        for source, told in zip(talking, found, strict=True):
            source.told = told


def uptime(source: Source) -> float:
    """Return the seconds since init was started, 0.0 while it does not run."""
    if source.status not in ALIVE or source.state is None:
        return 0.0
    return max(0.0, time.time() - source.state.started_at)


def configured_addresses(config: Config) -> list[str]:
    """Return every address that the configuration gives, as "ip" or "ip/mask"."""
    addresses = list(config.network.ip or ())
    for nic in config.network.interfaces or ():
        addresses += [*nic.ip, *nic.ip6]
    return [f"{address.ip}/{address.mask}" if address.mask else address.ip for address in addresses]


def addresses(source: Source) -> list[str]:
    """Return what it is reached by now: of a machine that runs what its guest says it has."""
    configured = configured_addresses(source.config)
    if not _talks(source):
        return configured
    if source.told:
        return source.told
    given = [*configured, *machineaddresses.leased(source.node, source.config)]
    return list(dict.fromkeys(given))


def distribution(config: Config) -> str | None:
    """Return the guest's family: DISTRIBUTION, else the first word of OSTEMPLATE."""
    if config.template.distribution:
        return str(config.template.distribution)
    name = (config.template.os or "").lstrip(".")
    return name.partition("-")[0] or None


def layout(source: Source) -> str | None:
    """Return the name of the storage driver that holds the root disk."""
    try:
        return storage.find(source.env.home).name
    except (VZError, OSError):
        return None


def load_average(source: Source) -> list[float] | None:
    """Return None: the kernel keeps no load average per container without lxcfs."""
    _ = source
    return None


def disk_space(source: Source) -> dict[str, int | None] | None:
    """Return used and allowed KiB of the root disk."""
    try:
        driver = storage.find(source.env.home)
        usage = driver.usage(source.env.home)
    except (VZError, OSError):
        return None
    exact = driver.capabilities(source.env.home).df_exact
    space = source.config.disk.space
    return {
        "usage": usage.used // 1024 if exact else None,
        "softlimit": space.barrier if space else None,
        "hardlimit": space.limit if space else None,
    }


def disk_inodes(source: Source) -> dict[str, int | None] | None:
    """Return used and allowed inodes of the root disk."""
    inodes = source.config.disk.inodes
    if inodes is None:
        return None
    return {"usage": None, "softlimit": inodes.barrier, "hardlimit": inodes.limit}


def beancounter(name: str) -> Callable[[Source], dict[str, int | None] | None]:
    """Return the function of one bean counter's field."""

    def read(source: Source) -> dict[str, int | None] | None:
        found = beancounters.of(source, name)
        if found is None:
            return None
        return {key: value for key, value in found._asdict().items() if key != "name"}

    return read


def _flag(value: bool | None) -> bool | None:  # noqa: FBT001
    return None if value is None else bool(value)


def _device_nodes(source: Source) -> list[str]:
    return [f"{entry.name}:{entry.access}" for entry in source.config.devices.nodes or ()]


def _features(source: Source) -> dict[str, bool]:
    flags = source.config.security.features
    if flags is None:
        return {}
    return dict.fromkeys(sorted(flags.on), True) | dict.fromkeys(sorted(flags.off), False)


def _or_none(value: object) -> object:
    return None if value in ("", 0, None) else value


Field = Callable[[Source], Any]
FIELDS: dict[str, Field] = {
    "uuid": lambda s: s.env.uuid,
    "envid": lambda s: s.env.envid,
    "name": lambda s: s.env.name,
    "kind": lambda s: str(s.env.kind),
    "home": lambda s: os.fspath(s.env.home),
    "status": lambda s: str(s.status),
    "root": lambda s: os.fspath(s.node.root(s.env, s.config)),
    "template": lambda s: s.config.identity.type == "template",
    "ve_type": lambda s: s.config.identity.type,
    "hostname": lambda s: s.config.network.hostname or None,
    "description": lambda s: s.config.identity.description or None,
    "owner": lambda _: "root",
    "ostemplate": lambda s: s.config.template.os or None,
    "distribution": lambda s: distribution(s.config),
    "origin_sample": lambda s: s.config.template.sample or None,
    "layout": layout,
    "device": lambda _: None,
    "cpuunits": lambda s: s.config.cpu.units,
    "cpulimit": lambda s: s.config.cpu.limit,
    "cpulimit_mhz": lambda s: _or_none(s.config.cpu.limit_mhz),
    "cpus": lambda s: _or_none(s.config.cpu.cpus),
    "cpumask": lambda s: s.config.cpu.mask or None,
    "nodemask": lambda s: s.config.cpu.nodemask or None,
    "ioprio": lambda s: s.config.io.priority,
    "iolimit": lambda s: s.config.io.limit,
    "iopslimit": lambda s: s.config.io.operations,
    "onboot": lambda s: s.config.boot.onboot,
    "bootorder": lambda s: s.config.boot.order,
    "autostop": lambda s: s.config.boot.autostop,
    "disabled": lambda s: _flag(s.config.boot.disabled),
    "ha_enable": lambda s: _flag(s.config.boot.ha_enable),
    "ha_prio": lambda s: s.config.boot.ha_prio,
    "features": _features,
    "devnodes": _device_nodes,
    "ip_configured": lambda s: configured_addresses(s.config),
    "nameserver": lambda s: list(s.config.network.nameservers or ()),
    "searchdomain": lambda s: list(s.config.network.searchdomains or ()),
    "ifname": lambda s: [nic.ifname for nic in s.bridged],
    "host_ifname": lambda s: [nic.host_ifname for nic in s.bridged],
    "mac": lambda s: [nic.mac for nic in s.bridged],
    "host_mac": lambda s: [nic.host_mac for nic in s.bridged],
    "gw": lambda s: [nic.gw for nic in s.bridged if nic.gw],
    "network": lambda s: [nic.network for nic in s.bridged],
    "netdev": lambda s: list(s.config.network.devices or ()),
    "ip": addresses,
    "uptime": uptime,
    "laverage": load_average,
    "diskspace": disk_space,
    "diskinodes": disk_inodes,
} | {name: beancounter(name) for name in NAMES}


def cpu_limits(config: Config) -> dict[str, object]:
    """Return the limits of CPU and disk traffic as `list -i` shows them, of either kind."""
    shown: dict[str, object] = {}
    if config.cpu.limit:
        shown["cpulimit"] = f"{config.cpu.limit}%"
    elif config.cpu.limit_mhz:
        shown["cpulimit"] = f"{config.cpu.limit_mhz}Mhz"
    shown["ioprio"] = 4 if config.io.priority is None else config.io.priority
    shown["iolimit"] = str(config.io.limit or 0)
    optional = (
        ("iopslimit", config.io.operations), ("mask", config.cpu.mask),
        ("nodemask", config.cpu.nodemask),
    )  # fmt: skip
    return shown | {name: str(value) for name, value in optional if value}
