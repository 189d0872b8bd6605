"""EZ templates: caches on the node, and packages in containers.

Every function takes the node; those that change a container take its lease.  Packages are
downloaded by the node and installed by a program of the container, inside; nothing of a container
ever runs on the node (template/apt.py says how).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import (
    AlreadyExists,
    EnvironmentNotFound,
    FileMissing,
    InvalidState,
    NotMounted,
    TemplateError,
    TemplateInstalled,
    TemplateNotFound,
    TemplateNotInstalled,
)
from pyvz.linux.file import copy_tree, remove_tree
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.model.task import Progress
from pyvz.operations.node import Node
from pyvz.operations.templateguest import Target, app_names, save_app_names, template_of
from pyvz.operations.transition import containers_only
from pyvz.template import base, build, cache, catalog, record, settings, shipped
from pyvz.template.base import Package, Update
from pyvz.template.cache import CacheFile
from pyvz.template.cachedata import package_data
from pyvz.template.metadata import (
    OsTemplate,
    app_templates,
    check_name,
    find_app,
    find_os,
    machine,
    os_templates,
)


class Changes(NamedTuple):
    """What a package operation did to a container."""

    installed: list[Package]  # new or newer
    removed: list[Package]


# Caches


def install_shipped(node: Node) -> list[str]:
    """Copy the metadata that pyvz ships into the template area where they are missing.

    Idempotent; a file that the administrator changed or removed stays so.  Returns what was
    written (paths below the template area).
    """
    return shipped.install(shipped.source(), cache.area(node.paths), node.paths.lib)


def find_template(node: Node, name: str) -> OsTemplate:
    """Return the OS template of that name; raises TemplateNotFound."""
    install_shipped(node)
    return find_os(cache.area(node.paths), name)


def ensure_cache(node: Node, ostemplate: str, progress: Progress) -> CacheFile:
    """Return the verified cache of an OS template, building it when there is none.

    OSTEMPLATE may have a leading dot and may lack the architecture.  Raises TemplateNotFound (also
    for a name with no template, unless a cache of that name exists), TemplateError, NoSpace,
    Cancelled.
    """
    found = cache.find(node.paths, ostemplate)
    if found is None:
        template = find_template(node, ostemplate)
        found = build.build(node.paths, template, progress, replace=False, exist_ok=True)
    cache.verify(found, progress)
    return found


def create_cache(
    node: Node, names: Sequence[str], *, force: bool = False, progress: Progress
) -> list[CacheFile]:
    """Build caches; without names of every template for this machine that has none.

    force: build anew what exists.  Raises CacheExists, TemplateNotFound, TemplateError, ...;
    the caches built before the failure stay.
    """
    templates = [find_template(node, name) for name in names] or [
        template
        for template in _buildable(node)
        if force or cache.find(node.paths, template.name) is None
    ]
    return [build.build(node.paths, template, progress, replace=force) for template in templates]


def update_cache(
    node: Node, names: Sequence[str], *, force: bool = False, progress: Progress
) -> list[CacheFile]:
    """Build caches anew where newer packages are to be had (or with force), or none exists.

    Without names: every cached template.  Returns those that were built.
    """
    templates = [find_template(node, name) for name in names] or [
        find_template(node, found.template) for found in cache.caches(node.paths)
    ]
    return [
        build.build(node.paths, template, progress, replace=True)
        for template in templates
        if force or _is_outdated(node, template, progress)
    ]


def _is_outdated(node: Node, template: OsTemplate, progress: Progress) -> bool:
    found = cache.find(node.paths, template.name)
    return found is None or bool(_cache_updates(node, found, progress))


def _cache_updates(node: Node, found: CacheFile, progress: Progress) -> list[Update]:
    """Return the packages of a cache that could be newer."""
    template = find_template(node, found.template)
    recipe = settings.recipe(template, settings.load(node.paths))._replace(expire=0.0)
    manager = base.load(template.package_manager)
    with package_data(found, progress) as root:
        return manager.updates(root, recipe, progress)


def remove_cache(node: Node, names: Sequence[str], *, progress: Progress) -> list[CacheFile]:
    """Remove caches, without names all of them; raises CacheMissing."""
    wanted = list(names) or [found.template for found in cache.caches(node.paths)]
    for name in wanted:
        cache.require(node.paths, name)
    return [cache.remove(node.paths, name, progress) for name in wanted]


def clean(node: Node, names: Sequence[str]) -> list[str]:
    """Drop what package managers keep on the node; without names of every template.

    Returns the names of the templates that were cleaned.
    """
    install_shipped(node)
    area = cache.area(node.paths)
    templates = [find_os(area, name) for name in names] or os_templates(area)
    for template in templates:
        recipe = settings.bare_recipe(template)
        base.load(template.package_manager).clean(recipe)
    return [template.name for template in templates]


def _buildable(node: Node) -> list[OsTemplate]:
    """Return the templates for this machine."""
    install_shipped(node)
    return [t for t in os_templates(cache.area(node.paths)) if t.arch == machine()]


# Packages in containers


def install(
    node: Node, ref: str, names: Sequence[str], *, packages: bool = False, progress: Progress
) -> Changes:
    """Install application templates, or with `packages` packages, into a running container.

    Raises TemplateNotFound, TemplateInstalled, TemplateError, NotRunning, CommandFailed.
    """
    env = node.registry.resolve(ref)
    containers_only(env, "vzpkg is for containers")
    with node.lease(env, "installing"):
        target = Target(node, env, template_of(node, env))
        apps = [] if packages else target.apps(names)
        present = app_names(node, env)
        for app in apps:
            if app.name in present:
                raise TemplateInstalled(f"{app.name} is already installed in {env.name}")
        wanted = list(names) if packages else [p for app in apps for p in app.packages()]
        with target.guest() as guest:
            new = target.manager.install(guest, target.recipe(apps), wanted, progress)
            target.remember(guest.root)
        for app in apps:
            record.note(env.home, app.name)
        if apps:
            save_app_names(node, env, [*present, *(app.name for app in apps)])
    return Changes(new, [])


def install_files(node: Node, ref: str, files: Sequence[str], *, progress: Progress) -> Changes:
    """Install (or update to) package files of the node in a running container."""
    env = node.registry.resolve(ref)
    containers_only(env, "vzpkg is for containers")
    paths = [Path(name) for name in files]
    for path in paths:
        if not path.is_file():
            raise FileMissing(f"there is no file {path}")
    with node.lease(env, "installing"):
        target = Target(node, env, template_of(node, env))
        with target.guest() as guest:
            new = target.manager.install_files(guest, target.recipe(), paths, progress)
            target.remember(guest.root)
    return Changes(new, [])


def update(
    node: Node, ref: str, names: Sequence[str], *, packages: bool = False, progress: Progress
) -> Changes:
    """Bring a running container's packages up to date: all, or those of NAMES.

    Raises TemplateNotInstalled for an application template that the container has not.
    """
    env = node.registry.resolve(ref)
    containers_only(env, "vzpkg is for containers")
    with node.lease(env, "updating"):
        target = Target(node, env, template_of(node, env))
        present = app_names(node, env)
        apps = target.apps(present if packages or not names else _installed(env, names, present))
        wanted = list(names) if packages else [p for a in apps for p in a.packages() if names]
        with target.guest() as guest:
            new = target.manager.update(guest, target.recipe(apps), wanted, progress)
            target.remember(guest.root)
        for name in [app.name for app in apps] if names else [target.os.name, *present]:
            record.note(env.home, name)
    return Changes(new, [])


def remove(
    node: Node,
    ref: str,
    names: Sequence[str],
    *,
    packages: bool = False,
    with_depends: bool = False,
    progress: Progress,
) -> Changes:
    """Remove application templates, or with `packages` packages, from a running container.

    with_depends: also what needs them; without it that is an error and nothing is removed.
    """
    env = node.registry.resolve(ref)
    containers_only(env, "vzpkg is for containers")
    with node.lease(env, "removing"):
        target = Target(node, env, template_of(node, env))
        present = app_names(node, env)
        if packages:
            wanted = list(names)
        else:
            apps = target.apps(_installed(env, names, present))
            wanted = [p for app in apps for p in app.packages()]
        with target.guest() as guest:
            have = {package.name for package in target.manager.installed(guest.root)}
            wanted = _present(env, wanted, have, strict=packages)
            if not with_depends:
                _refuse_dependent(target, guest.root, wanted, progress)
            gone = target.manager.remove(guest, wanted, progress) if wanted else []
            target.remember(guest.root)
        if not packages:
            for name in names:
                record.forget(env.home, name)
            save_app_names(node, env, [name for name in present if name not in names])
    return Changes([], gone)


def status(node: Node, name: str, *, progress: Progress) -> list[Update]:
    """Return what could be newer in a container (running or mounted), or in a template's cache."""
    try:
        env = node.registry.resolve(name)
    except EnvironmentNotFound:
        return _cache_updates(node, cache.require(node.paths, name), progress)
    target = Target(node, env, template_of(node, env))
    recipe = target.recipe(target.apps(app_names(node, env)))
    with GuestRoot.open(_mounted_root(node, env)) as root:
        return target.manager.updates(root, recipe._replace(expire=0.0), progress)


def _installed(env: Environment, names: Sequence[str], present: Sequence[str]) -> Sequence[str]:
    for name in names:
        if name not in present:
            raise TemplateNotInstalled(f"{name} is not installed in {env.name}")
    return names


def _present(env: Environment, wanted: Sequence[str], have: set[str], *, strict: bool) -> list[str]:
    missing = [name for name in wanted if name not in have]
    if missing and strict:
        raise TemplateNotInstalled(f"{', '.join(missing)}: not installed in {env.name}")
    return [name for name in wanted if name in have]


def _refuse_dependent(
    target: Target, root: GuestRoot, wanted: Sequence[str], progress: Progress
) -> None:
    """Raise TemplateError when something else needs what is to be removed."""
    if not wanted:
        return
    others = set(target.manager.would_remove(root, target.recipe(), wanted, progress))
    others -= set(wanted)
    if others:
        raise TemplateError(
            f"other packages of {target.env.name} need what is to be removed",
            details="\n".join(sorted(others)),
            hint="--with-depends removes them too.",
        )


def _mounted_root(node: Node, env: Environment) -> Path:
    root = node.root(env)
    if node.status(env) not in {Status.RUNNING, Status.PAUSED, Status.MOUNTED}:
        raise NotMounted(f"{env.name} is not mounted", hint="Start or mount it first.")
    return root


# Lists and facts


def list_templates(
    node: Node, names: Sequence[str] = (), *, kind: str | None = None, cached: bool = False
) -> list[dict[str, object]]:
    """Return the node's templates as rows {os, app, summary, timestamp, cached}.

    NAMES: only these OS templates and their applications.  kind: "os" or "app", None for both.
    cached: only OS templates that have a cache.
    """
    install_shipped(node)
    area = cache.area(node.paths)
    templates = [find_os(area, name) for name in names] or os_templates(area)
    rows: list[dict[str, object]] = []
    for template in templates:
        found = cache.find(node.paths, template.name)
        if cached and found is None:
            continue
        if kind != "app":
            rows.append(catalog.os_row(template, found))
        if kind != "os" and not cached:
            rows += [catalog.app_row(app) for app in app_templates(template)]
    return rows


def list_container(node: Node, ref: str, *, packages: bool = False) -> list[dict[str, object]]:
    """Return the templates that a container has, as rows of list_templates.

    packages: rows {name, arch, version, summary} of its packages instead; it must be mounted.
    """
    env = node.registry.resolve(ref)
    containers_only(env, "vzpkg is for containers")
    os_template = template_of(node, env)
    if packages:
        manager = base.load(os_template.package_manager)
        with GuestRoot.open(_mounted_root(node, env)) as root:
            return [package._asdict() for package in manager.installed(root)]
    rows = [catalog.os_row(os_template, None)]
    rows += [catalog.app_row(find_app(os_template, name)) for name in app_names(node, env)]
    for row in rows:
        row["timestamp"] = record.timestamp(env.home, str(row["app"] or row["os"]))
    return rows


def info(
    node: Node, name: str, parameters: Sequence[str] = (), *, for_os: str | None = None
) -> dict[str, object]:
    """Return facts about a template: an OS template, a container's, or with `for_os` (an OS
    template or a container) an application template.

    PARAMETERS: only these, in that order; BadValue for one that does not exist.
    """
    install_shipped(node)
    if for_os is not None:
        facts = catalog.app_facts(find_app(_os_of(node, for_os), name))
    else:
        template = _os_of(node, name)
        facts = catalog.os_facts(template, cache.find(node.paths, template.name))
    return catalog.chosen(facts, parameters)


def _os_of(node: Node, name: str) -> OsTemplate:
    """Return the OS template of that name, or of the container of that name."""
    try:
        return template_of(node, node.registry.resolve(name))
    except EnvironmentNotFound:
        return find_os(cache.area(node.paths), name)


# Templates themselves


def install_template(node: Node, folder: str, *, force: bool = False, progress: Progress) -> str:
    """Copy a folder `<dist>/<version>/<arch>` of metadata into the template area; return its name.

    Raises TemplateError when the folder is no template, AlreadyExists unless `force`.
    """
    source = Path(folder).resolve()
    if len(source.parts) < 4:
        raise TemplateError(f"{folder} is not a template")
    offered = OsTemplate(source.parents[2], *source.parts[-3:])
    check_name(offered.name)
    offered.packages()
    base.module_name(offered.package_manager)
    target = offered._replace(area=cache.area(node.paths))
    if target.home.exists() and not force:
        raise AlreadyExists(f"the template {target.name} is there already")
    target.home.parent.mkdir(parents=True, exist_ok=True)
    copy_tree(source / "config", target.home / "config", progress)
    return target.name


def remove_template(node: Node, name: str, *, for_os: str | None, progress: Progress) -> None:
    """Remove the metadata of an OS template, or with `for_os` of an application template.

    Refused (InvalidState) while a container uses it, or an OS template has a cache.
    """
    template = find_template(node, for_os or name)
    users = [env.name for env in node.registry.environments() if _uses(node, env, template, name)]
    if users:
        raise InvalidState(f"{name} is used by containers", details="\n".join(users))
    if for_os is not None:
        remove_tree(find_app(template, name).own.directory.parent, progress)
        return
    if cache.find(node.paths, template.name) is not None:
        raise InvalidState(
            f"{template.name} has a cache", hint=f"Remove it first: vzpkg remove cache {name}"
        )
    remove_tree(template.home, progress)


def _uses(node: Node, env: Environment, template: OsTemplate, name: str) -> bool:
    used = (node.registry.conf_file(env).get("OSTEMPLATE") or "").removeprefix(".")
    if used not in {template.name, template.name.removesuffix(f"-{template.arch}")}:
        return False
    return name in app_names(node, env) or find_os_name(name, template)


def find_os_name(name: str, template: OsTemplate) -> bool:
    """Whether NAME means that OS template (and no application of it)."""
    return name.removeprefix(".") in {
        template.name,
        template.name.removesuffix(f"-{template.arch}"),
    }


# Containers


def created(home: Path, name: str) -> None:
    """Write what a new container's home remembers of its OS template; called by provision."""
    record.note(home, name)


def distribution(node: Node, name: str) -> str:
    """Return the family of an OS template; a cache without metadata tells it by its name."""
    try:
        return find_template(node, name).distribution
    except TemplateNotFound:
        return name.partition("-")[0]
