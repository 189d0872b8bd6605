"""Facts about templates, as `vzpkg list` and `vzpkg info` show them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pyvz.errors import BadValue
from pyvz.template.cache import CacheFile
from pyvz.template.metadata import AppTemplate, OsTemplate

Row = dict[str, object]


def os_row(template: OsTemplate, cached: CacheFile | None) -> Row:
    """Return the row of an OS template; timestamp: when its cache was built, "" without."""
    return {
        "os": template.name,
        "app": None,
        "summary": template.own.text("summary") or template.base.text("summary"),
        "timestamp": _local(cached.built) if cached else "",
        "cached": cached is not None,
    }


def app_row(template: AppTemplate) -> Row:
    """Return the row of an application template."""
    return {
        "os": template.os.name,
        "app": template.name,
        "summary": template.own.text("summary"),
        "timestamp": "",
        "cached": False,
    }


def os_facts(template: OsTemplate, cached: CacheFile | None) -> Row:
    """Return the parameters of `vzpkg info OS`, in the original's order."""
    own, base = template.own, template.base
    return {
        "name": template.name,
        "osname": template.dist,
        "version": own.text("version") or template.version,
        "release": own.text("release"),
        "arch": template.arch,
        "config_path": str(own.directory),
        "summary": own.text("summary") or base.text("summary"),
        "description": own.text("description") or base.text("description"),
        "packages_0": own.lines("packages_0"),
        "packages_1": own.lines("packages_1"),
        "packages": template.packages(),
        "repositories": base.lines("repositories"),
        "mirrorlist": base.lines("mirrorlist"),
        "package_manager": base.text("package_manager"),
        "package_manager_type": _kind(base.text("package_manager")),
        "distribution": template.distribution,
        "technologies": base.lines("technologies"),
        "environment": base.lines("environment"),
        "upgradable_versions": base.lines("upgradable_versions"),
        "cached": "yes" if cached else "no",
        "osrelease": base.text("osrelease"),
        "jquota": "yes" if base.text("jquota") == "yes" else "no",
    }


def app_facts(template: AppTemplate) -> Row:
    """Return the parameters of `vzpkg info -F OS APP`."""
    own = template.own
    return {
        "name": template.name,
        "osname": template.os.name,
        "version": own.text("version"),
        "release": own.text("release"),
        "arch": template.os.arch,
        "config_path": str(own.directory),
        "summary": own.text("summary"),
        "description": own.text("description"),
        "packages": template.packages(),
        "repositories": own.lines("repositories"),
        "mirrorlist": own.lines("mirrorlist"),
        "package_manager": template.os.base.text("package_manager"),
    }


def chosen(facts: Row, parameters: Sequence[str]) -> Row:
    """Return only PARAMETERS of the facts, all when there are none; raise BadValue."""
    unknown = [name for name in parameters if name not in facts]
    if unknown:
        raise BadValue(f"'{unknown[0]}' is not a parameter", hint=f"Parameters: {' '.join(facts)}.")
    return {name: facts[name] for name in parameters} if parameters else facts


def _kind(manager: str) -> str:
    """Return the family of package managers: dpkg or rpm."""
    return "dpkg" if manager.startswith(("apt", "dpkg", "deb")) else "rpm"


def _local(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
