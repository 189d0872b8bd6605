"""What the engine needs to know to start one container."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pyvz.container import capability, devices, guestinit
from pyvz.container.devices import DeviceNode
from pyvz.linux.features import Features
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.config import Config
from pyvz.model.config_limits import limits_of
from pyvz.model.environment import Environment
from pyvz.model.limits import DeviceRule, IdRange, Limits, canonical_access

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Capabilities of the original that a stock kernel does not have: libvzctl, include/vzcap.h
_FOREIGN_CAPABILITIES = {"VE_ADMIN", "FS_MASK"}


class Bind(NamedTuple):
    """A directory or file of the node that is shown inside.

    target: absolute path inside.  idmap: owners on disk are the container's own ids (0..65535),
    not the node's; needs a file system with idmapped mounts.  attributes: of "nosuid", "nodev",
    "noexec".
    """

    source: Path
    target: str
    read_only: bool = False
    idmap: bool = True
    attributes: tuple[str, ...] = ()


class ContainerSpec(NamedTuple):
    """One container as the engine sees it.

    root: its mounted tree on the node, with unshifted owners.  ids: None means no user namespace:
    root inside is root on the node.  caps: names of capability.NAMES that anybody inside may have.
    nesting: containers may run inside (CRIU cannot dump it then).  log: file that the console's
    output is appended to.  disks: (major, minor) of the disks that I/O limits are for.
    device_rules: what may be opened beside the nodes.  netfilter: it may filter packets itself.
    figures: memory, CPUs, load and uptime inside are the container's own.  merge: its equal pages
    are merged with those of others (KSM).
    """

    uuid: str
    hostname: str
    root: Path
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    ids: IdRange | None
    caps: frozenset[str]
    nesting: bool
    limits: Limits
    device_nodes: tuple[DeviceNode, ...] = ()
    device_rules: tuple[DeviceRule, ...] = ()
    binds: tuple[Bind, ...] = ()
    disks: tuple[tuple[int, int], ...] = ()
    log: Path | None = None
    network_namespace: bool = True
    time_namespace: bool = True
    netfilter: bool = True
    figures: bool = False
    merge: bool = False


def from_config(
    env: Environment,
    config: Config,
    *,
    root: Path,
    ids: IdRange | None,
    features: Features,
    cpus: int,
) -> ContainerSpec:
    """The specification that a configuration means on this node; root is mounted.

    Looks at the root for its init and at /dev for the devices.  Raises BadValue.
    """
    with GuestRoot.open(root) as guest:
        argv = guestinit.detect(guest).argv
    flags = config.security.features
    return ContainerSpec(
        uuid=env.uuid,
        hostname=config.network.hostname or _hostname_of(env.name),
        root=root,
        argv=argv,
        env=environment(env.uuid, config.boot.environment),
        ids=ids,
        caps=_capabilities(config),
        nesting=flags is not None and "nesting" in flags.on,
        limits=limits_of(config, cpus=cpus),
        device_nodes=tuple(
            devices.from_devnodes(node.name, node.access)
            for node in config.devices.nodes
            if node.access != "none"
        ),
        device_rules=_rules(config),
        binds=_binds(env, config),
        time_namespace=bool(features.timens),
        netfilter=config.network.netfilter != "disabled",
    )


def environment(uuid: str, extra: tuple[tuple[str, str], ...] = ()) -> tuple[tuple[str, str], ...]:
    """The environment of init (https://systemd.io/CONTAINER_INTERFACE), and what was added."""
    base = {
        "PATH": PATH,
        "TERM": "linux",
        "HOME": "/root",
        "container": "pyvz",
        "container_uuid": uuid,
    }
    return tuple((base | dict(extra)).items())


def _hostname_of(name: str) -> str:
    """An acceptable host name from an environment's name."""
    letters = "".join(x if x.isascii() and (x.isalnum() or x in "-.") else "-" for x in name)
    return letters.strip("-.")[:64] or "container"


def _capabilities(config: Config) -> frozenset[str]:
    flags = config.security.capability
    if flags is None:
        return capability.DEFAULT
    switches = [(name, True) for name in flags.on] + [(name, False) for name in flags.off]
    known = [each for each in switches if each[0] not in _FOREIGN_CAPABILITIES]
    return capability.changed(capability.DEFAULT, known)


def _rules(config: Config) -> tuple[DeviceRule, ...]:
    wanted = [each for each in config.devices.numbers if each.access != "none"]
    return tuple(
        DeviceRule(each.kind, each.major, each.minor, canonical_access(each.access))
        for each in wanted
    )


def _binds(env: Environment, config: Config) -> tuple[Bind, ...]:
    return tuple(
        Bind(
            source=Path(each.source) if each.source else env.home / "mnt" / each.target.lstrip("/"),
            target=each.target,
            read_only="ro" in each.options,
            attributes=tuple(x for x in each.options if x in {"nosuid", "nodev", "noexec"}),
        )
        for each in config.disk.bindmounts
    )
