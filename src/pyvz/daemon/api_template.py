"""The interface io.pyvz.Template: EZ templates, their caches, and packages in containers.

No `from __future__ import annotations` here: see replies.py.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

from asyncvarlink import VarlinkInterface, varlinkmethod

from pyvz.daemon.calls import Api, streaming
from pyvz.daemon.replies import Empty
from pyvz.daemon.tasks import Work
from pyvz.operations import template
from pyvz.operations.node import Node
from pyvz.operations.template import Changes
from pyvz.template.cache import CacheFile


class Caches(TypedDict):
    """Names of the templates whose caches were made or removed."""

    caches: list[str]


class Names(TypedDict):
    """Names of templates."""

    templates: list[str]


class Name(TypedDict):
    """The name of a template."""

    name: str


class PackageValue(TypedDict):
    """A package in a container."""

    name: str
    version: str
    arch: str
    summary: str


class ChangesReply(TypedDict):
    """What was installed (or updated to) in a container, and what was removed from it."""

    installed: list[PackageValue]
    removed: list[PackageValue]


class UpdateValue(TypedDict):
    """A package that could be newer."""

    name: str
    installed: str
    available: str


class UpdatesReply(TypedDict):
    """What could be newer; empty: it is up to date."""

    updates: list[UpdateValue]


def _caches(found: list[CacheFile]) -> Caches:
    return {"caches": [each.template for each in found]}


def _changes(changes: Changes) -> Mapping[str, Any]:
    return {
        name: [
            {"name": each.name, "version": each.version, "arch": each.arch, "summary": each.summary}
            for each in packages
        ]
        for name, packages in changes._asdict().items()
    }


class Template(Api, VarlinkInterface, name="io.pyvz.Template"):
    """EZ templates: from them containers are made.  A cache is a template's built file system.

    `ref` is a container; its packages are changed while it runs.
    """

    @varlinkmethod(return_parameter="rows", allow_foreign=True)
    async def List(
        self, *, names: list[str] | None = None, kind: str | None = None, cached: bool = False
    ) -> list[Any]:
        """Return the templates {os, app, summary, timestamp, cached}.  names: only of these OS
        templates; kind: "os" or "app"; cached: only those that have a cache.
        """
        rows: list[Any] = await self.query(
            template.list_templates, names or (), kind=kind, cached=cached
        )
        return rows

    @varlinkmethod(return_parameter="rows", allow_foreign=True)
    async def ListContainer(self, *, ref: str, packages: bool = False) -> list[Any]:
        """Return the templates that a container has, or its packages."""
        rows: list[Any] = await self.query(template.list_container, ref, packages=packages)
        return rows

    @varlinkmethod(return_parameter="facts", allow_foreign=True)
    async def Info(
        self, *, name: str, parameters: list[str] | None = None, for_os: str | None = None
    ) -> object:
        """Return facts about an OS template, or with for_os about an application template of it;
        only PARAMETERS, when they are given.
        """
        return await self.query(template.info, name, parameters or (), for_os=for_os)

    @streaming(Caches)
    def CreateCache(
        self, node: Node, *, names: list[str] | None = None, force: bool = False
    ) -> Work:
        """Build caches; without names of every template that has none.  Can be called off."""
        return Work(
            "create cache",
            _words(names),
            lambda task: template.create_cache(node, names or (), force=force, progress=task),
            _caches,
            cancellable=True,
        )

    @streaming(Caches)
    def UpdateCache(
        self, node: Node, *, names: list[str] | None = None, force: bool = False
    ) -> Work:
        """Build caches anew where packages are newer (or with force).  Can be called off."""
        return Work(
            "update cache",
            _words(names),
            lambda task: template.update_cache(node, names or (), force=force, progress=task),
            _caches,
            cancellable=True,
        )

    @streaming(Caches)
    def RemoveCache(self, node: Node, *, names: list[str] | None = None) -> Work:
        """Remove caches; without names all."""
        return Work(
            "remove cache",
            _words(names),
            lambda task: template.remove_cache(node, names or (), progress=task),
            _caches,
        )

    @streaming(ChangesReply)
    def Install(self, node: Node, *, ref: str, names: list[str], packages: bool = False) -> Work:
        """Install application templates, or packages, in a container."""
        return Work(
            "install",
            ref,
            lambda task: template.install(node, ref, names, packages=packages, progress=task),
            _changes,
        )

    @streaming(ChangesReply)
    def LocalInstall(self, node: Node, *, ref: str, files: list[str]) -> Work:
        """Install package files of the node in a container."""
        return Work(
            "install files",
            ref,
            lambda task: template.install_files(node, ref, files, progress=task),
            _changes,
        )

    @streaming(ChangesReply)
    def Update(
        self, node: Node, *, ref: str, names: list[str] | None = None, packages: bool = False
    ) -> Work:
        """Update a container's packages: all, or those of NAMES."""
        return Work(
            "update",
            ref,
            lambda task: template.update(node, ref, names or (), packages=packages, progress=task),
            _changes,
        )

    @streaming(ChangesReply)
    def Remove(
        self,
        node: Node,
        *,
        ref: str,
        names: list[str],
        packages: bool = False,
        with_depends: bool = False,
    ) -> Work:
        """Remove application templates, or packages, from a container."""
        return Work(
            "remove",
            ref,
            lambda task: template.remove(
                node, ref, names, packages=packages, with_depends=with_depends, progress=task
            ),
            _changes,
        )

    @streaming(UpdatesReply)
    def Status(self, node: Node, *, name: str) -> Work:
        """Return what could be newer in a container, or in a template's cache."""
        return Work(
            "package status",
            name,
            lambda task: template.status(node, name, progress=task),
            lambda updates: {"updates": [update._asdict() for update in updates]},
        )

    @streaming(Names)
    def Clean(self, node: Node, *, names: list[str] | None = None) -> Work:
        """Drop what package managers keep on the node; without names of every template."""
        return Work(
            "clean",
            _words(names),
            lambda _: template.clean(node, names or ()),
            lambda cleaned: {"templates": cleaned},
        )

    @streaming(Name)
    def InstallTemplate(self, node: Node, *, folder: str, force: bool = False) -> Work:
        """Copy a folder <dist>/<version>/<arch> of metadata into the template area."""
        return Work(
            "install template",
            folder,
            lambda task: template.install_template(node, folder, force=force, progress=task),
            lambda name: {"name": name},
        )

    @streaming(Empty)
    def RemoveTemplate(self, node: Node, *, name: str, for_os: str | None = None) -> Work:
        """Remove the metadata of an OS template, or with for_os of an application template."""
        return Work(
            "remove template",
            name,
            lambda task: template.remove_template(node, name, for_os=for_os, progress=task),
        )


def _words(names: list[str] | None) -> str:
    return " ".join(names or ())
