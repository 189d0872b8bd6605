"""The administrator's settings for templates: vztt.conf and url.map.

<root>/etc/vztt/vztt.conf              proxies, exclusions, compression; NAME="value"
<root>/etc/vztt/url.map                $NAME URL
<area>/conf/vztt/url.map               the same, where newer versions of the original keep it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

from pyvz.errors import ConfigError
from pyvz.model.conffile import ConfFile
from pyvz.store.nodeconf import node_config
from pyvz.store.paths import Paths
from pyvz.template import cache
from pyvz.template.base import Recipe
from pyvz.template.metadata import OsTemplate
from pyvz.template.repository import (
    Variables,
    parse_url_map,
    read_node_variables,
    resolve,
)

# ARCHIVE in vztt.conf -> suffix.  lzrw, the original's own format, is read by nobody else.
COMPRESSIONS = {"zstd": "zst", "zst": "zst", "lz4": "lz4", "gz": "gz", "gzip": "gz", "xz": "xz"}


class Settings(NamedTuple):
    """What vztt.conf and url.map say."""

    variables: Variables
    environment: Mapping[str, str]  # proxies
    exclude: tuple[str, ...]
    compression: str  # suffix of new caches


def load(paths: Paths) -> Settings:
    """Read the settings; raises ConfigError or TemplateError naming file and line."""
    etc = paths.root / "etc/vztt"
    values = ConfFile.parse(_read(etc / "vztt.conf")).values()
    archive = values.get("ARCHIVE", "zstd").lower()
    if archive not in COMPRESSIONS:
        raise ConfigError(
            f"{etc / 'vztt.conf'}: ARCHIVE: '{archive}' is not supported",
            hint=f"It is one of {', '.join(COMPRESSIONS)}.",
        )
    node = read_node_variables()
    mapped = dict(node.values)
    for path in (etc / "url.map", cache.area(paths) / "conf/vztt/url.map"):
        mapped.update(parse_url_map(_read(path), str(path)))
    return Settings(
        Variables(mapped, node.keys, values.get("VZTT_PROXY", "")),
        proxies(values, node_config(paths).http_proxy),
        tuple(values.get("EXCLUDE", "").split()),
        COMPRESSIONS[archive],
    )


def proxies(values: Mapping[str, str], default: str = "") -> dict[str, str]:
    """Return the proxy variables for programs, from the keys of vztt.conf."""
    proxy = values.get("HTTP_PROXY", "") or default
    if not proxy:
        return {}
    user = values.get("HTTP_PROXY_USER", "")
    if user:
        password = values.get("HTTP_PROXY_PASSWORD", "")
        parts = urlsplit(proxy)
        login = quote(user, safe="") + (":" + quote(password, safe="") if password else "")
        proxy = urlunsplit(parts._replace(netloc=f"{login}@{parts.netloc}"))
    return dict.fromkeys(("http_proxy", "https_proxy", "ftp_proxy"), proxy)


def recipe(template: OsTemplate, settings: Settings, extra: tuple[str, ...] = ()) -> Recipe:
    """Return what a package manager must know to work with TEMPLATE.

    EXTRA: repository lines of application templates.  Raises TemplateError where a repository
    variable is not set or the metadata are broken.
    """
    own = template.base
    lines = [*own.lines("repositories"), *extra]
    lines += [_as_mirrorlist(line) for line in own.lines("mirrorlist")]
    key = own.text("gpgkey") or own.text("keyring")
    return Recipe(
        template=template.name,
        arch=template.arch,
        release=template.version,
        packages=tuple(template.packages()),
        repositories=tuple(resolve(lines, settings.variables, template=template.name, key=key)),
        environment={**own.environment(), **settings.environment},
        data=template.package_data,
        exclude=settings.exclude,
    )


def _as_mirrorlist(line: str) -> str:
    if line.startswith("["):
        return line.replace("[", "[mirrorlist=yes ", 1)
    return f"[mirrorlist=yes] {line}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""


def bare_recipe(template: OsTemplate) -> Recipe:
    """Return a recipe that only says where the template's data are (to clean them)."""
    return Recipe(template.name, template.arch, template.version, (), (), {}, template.package_data)
