"""A running container as package managers see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pyvz.container.runtime import ExecRequest
from pyvz.errors import NotRunning, TemplateError, Unsupported
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.operations.node import Node
from pyvz.operations.program import finish
from pyvz.template import base, cache, record, settings
from pyvz.template.base import Answer, PackageManager, Recipe
from pyvz.template.metadata import AppTemplate, OsTemplate, find_app, find_os


class ContainerGuest:
    """Programs run inside, by the engine; files are reached through the mounted root."""

    def __init__(self, node: Node, env: Environment, root: GuestRoot) -> None:
        self.node = node
        self.env = env
        self.root = root

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        timeout: float,
        on_line: Callable[[str], None] | None = None,
    ) -> Answer:
        """Run a program inside to its end; raises Timeout."""
        request = ExecRequest(argv=tuple(argv), env=tuple(env.items()))
        ended = finish(self.node.runtime.exec(self.env.uuid, request), timeout=timeout)
        if on_line is not None:
            for line in ended.output.splitlines():
                on_line(line)
        return Answer(ended.code, ended.output)


class Target:
    """A container with its template and package manager, for the length of one operation."""

    def __init__(self, node: Node, env: Environment, os_template: OsTemplate) -> None:
        self.node = node
        self.env = env
        self.os = os_template
        self.settings = settings.load(node.paths)
        if os_template.base.has("no_pkg_actions"):
            raise Unsupported(f"the template {os_template.name} does not allow package operations")
        self.manager: PackageManager = base.load(os_template.package_manager)

    def recipe(self, apps: Sequence[AppTemplate] = ()) -> Recipe:
        """Return the recipe, with the repositories that application templates add."""
        extra = [line for app in apps for line in app.own.lines("repositories")]
        return settings.recipe(self.os, self.settings, tuple(extra))

    def apps(self, names: Sequence[str]) -> list[AppTemplate]:
        """Return the application templates of that names; raise TemplateNotFound."""
        return [find_app(self.os, name) for name in names]

    def remember(self, root: GuestRoot) -> None:
        """Write the list of installed packages into the container's home."""
        record.save_packages(self.env.home, self.manager.installed(root))

    @contextmanager
    def guest(self) -> Iterator[ContainerGuest]:
        """Have the running container; raises NotRunning."""
        require_running(self.node, self.env)
        with GuestRoot.open(self.node.root(self.env)) as root:
            yield ContainerGuest(self.node, self.env, root)


def require_running(node: Node, env: Environment) -> None:
    """Raise NotRunning for a container that cannot run its package manager now."""
    if node.status(env) != Status.RUNNING:
        raise NotRunning(
            f"{env.name} is not running",
            hint="Packages are installed by the container itself: start it first.",
        )


def template_of(node: Node, env: Environment) -> OsTemplate:
    """Return the OS template of a container; raise TemplateError when its config names none."""
    name = node.registry.conf_file(env).get("OSTEMPLATE")
    if not name:
        raise TemplateError(f"the configuration of {env.name} has no OSTEMPLATE")
    return find_os(cache.area(node.paths), name)


def app_names(node: Node, env: Environment) -> list[str]:
    """Return the application templates that are installed in a container."""
    text = node.registry.conf_file(env).get("TEMPLATES") or ""
    return list(dict.fromkeys(word.removeprefix(".") for word in text.split()))


def save_app_names(node: Node, env: Environment, names: Sequence[str]) -> None:
    """Write TEMPLATES (each name with a leading dot, as the original does)."""
    conf = node.registry.conf_file(env)
    conf.set("TEMPLATES", " ".join(f".{name}" for name in names) or None)
    node.registry.save(env, conf)
