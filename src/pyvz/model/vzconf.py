"""The configuration of a node: /etc/vz/vz.conf, typed, with the original's defaults.

Keys that nobody set have the default of config.md section 4; keys we do not know stay in `values`,
which the layers that own them (network, templates, per-container defaults) may ask.  Paths inside
vz.conf are those of a node whose root is "/": under() puts them below another root.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyvz.errors import BadValue, ConfigError
from pyvz.model.grammar import Choice, Grammar, Integer, Text, YesNo

_VEID = re.compile(r"\$(?:VEID\b|\{VEID\})")
_TEXT: Grammar[str] = Text()


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """vz.conf of one node.  A path here is absolute as written, with $VEID in it."""

    virtuozzo: bool = True
    lockdir: str = "/vz/lock"
    dumpdir: str = "/vz/dump"
    template: str = "/vz/template"
    ve_root: str = "/vz/root/$VEID"
    ve_private: str = "/vz/private/$VEID"
    configfile: str = "basic"
    ostemplate: str = ".debian-12"  # DEF_OSTEMPLATE
    ve_fs_type: str = "ext4"
    layout: str = "ploop"  # VELAYOUT
    golden_image: bool = True
    logging: bool = True
    logfile: str = "/var/log/vzctl.log"
    log_level: int = 0
    verbose: int = 0
    disk_quota: bool = True
    ipv6: bool = True
    traffic_shaping: bool = False
    bandwidth: str = ""
    totalrate: str = ""
    rate: str = ""
    ratempu: str = ""
    ve_route_src_dev: str = ""
    ve_parallel: int = 0  # 0: number of CPUs x 4
    ve_stop_mode: str = "stop"
    stop_timeout: int = 60  # seconds; vzctl 7 waits 60
    repair_mode: str = "auto"
    http_proxy: str = ""
    allow_reboot: bool = True
    cgroup_slice: str = "machine.slice"  # VE_CGROUP_SLICE
    lxcfs: bool = True  # LXCFS: containers see their own figures; FEATURES lxcfs:on|off
    ksm: bool = False  # KSM: equal pages of containers are merged; FEATURES ksm:on|off
    metrics: str = ""  # METRICS: "[ADDRESS:]PORT" of the endpoint for Prometheus; empty: none
    libvirt_tls: str = ""  # LIBVIRT_TLS: "[ADDRESS:]PORT" or yes; empty: no listener
    libvirt_tcp: str = ""  # LIBVIRT_TCP: the same without encryption
    libvirt_clients: str = ""  # LIBVIRT_CLIENTS: patterns of names in certificates; empty: all
    values: Mapping[str, str] = field(default_factory=dict)  # everything, as text

    @classmethod
    def parse(cls, values: Mapping[str, str], source: str = "vz.conf") -> NodeConfig:
        """Return the configuration that VALUES (of a ConfFile) mean.

        Raises ConfigError, naming SOURCE and the key, for a value that cannot be understood.
        """
        known: dict[str, object] = {}
        for name, (key, grammar) in _KEYS.items():
            text = values.get(key)
            if text is None:
                continue
            try:
                known[name] = grammar.parse(text)
            except BadValue as error:
                raise ConfigError(f"{source}: {key}: {error.message}", hint=error.hint) from error
        return cls(values=dict(values), **known)  # type: ignore[arg-type]


_YES_NO = YesNo()
_NUMBER = Integer(0, 2**31)
_KEYS: dict[str, tuple[str, Grammar[object]]] = {
    name: (key, grammar)  # type: ignore[misc]
    for name, key, grammar in (
        ("virtuozzo", "VIRTUOZZO", _YES_NO),
        ("lockdir", "LOCKDIR", _TEXT),
        ("dumpdir", "DUMPDIR", _TEXT),
        ("template", "TEMPLATE", _TEXT),
        ("ve_root", "VE_ROOT", _TEXT),
        ("ve_private", "VE_PRIVATE", _TEXT),
        ("configfile", "CONFIGFILE", _TEXT),
        ("ostemplate", "DEF_OSTEMPLATE", _TEXT),
        ("ve_fs_type", "VEFSTYPE", _TEXT),
        ("layout", "VELAYOUT", _TEXT),
        ("golden_image", "GOLDEN_IMAGE", _YES_NO),
        ("logging", "LOGGING", _YES_NO),
        ("logfile", "LOGFILE", _TEXT),
        ("log_level", "LOG_LEVEL", _NUMBER),
        ("verbose", "VERBOSE", _NUMBER),
        ("disk_quota", "DISK_QUOTA", _YES_NO),
        ("ipv6", "IPV6", _YES_NO),
        ("traffic_shaping", "TRAFFIC_SHAPING", _YES_NO),
        ("bandwidth", "BANDWIDTH", _TEXT),
        ("totalrate", "TOTALRATE", _TEXT),
        ("rate", "RATE", _TEXT),
        ("ratempu", "RATEMPU", _TEXT),
        ("ve_route_src_dev", "VE_ROUTE_SRC_DEV", _TEXT),
        ("ve_parallel", "VE_PARALLEL", _NUMBER),
        ("ve_stop_mode", "VE_STOP_MODE", Choice(("stop", "suspend"))),
        ("stop_timeout", "STOP_TIMEOUT", Integer(1, 86400)),
        ("repair_mode", "REPAIR_MODE", Choice(("auto", "force"))),
        ("http_proxy", "HTTP_PROXY", _TEXT),
        ("allow_reboot", "ALLOWREBOOT", _YES_NO),
        ("cgroup_slice", "VE_CGROUP_SLICE", _TEXT),
        ("lxcfs", "LXCFS", _YES_NO),
        ("ksm", "KSM", _YES_NO),
        ("metrics", "METRICS", _TEXT),
        ("libvirt_tls", "LIBVIRT_TLS", _TEXT),
        ("libvirt_tcp", "LIBVIRT_TCP", _TEXT),
        ("libvirt_clients", "LIBVIRT_CLIENTS", _TEXT),
    )
}


def expand_veid(text: str, veid: str) -> str:
    """Return TEXT with $VEID (or ${VEID}) replaced by the id of a container."""
    return _VEID.sub(lambda _match: veid, text)


def under(root: Path, path: str) -> Path:
    """Return the place of PATH (as written in a conf file) on the node whose root is ROOT.

    A path that lies below ROOT already is taken as it is, so that links and files that name the
    real place are understood as well.  Raises BadValue for a relative path or one with "..".
    """
    wanted = Path(path)
    if not wanted.is_absolute() or ".." in wanted.parts:
        raise BadValue(f"'{path}' is not an absolute path")
    return wanted if wanted.is_relative_to(root) else root / wanted.relative_to("/")
