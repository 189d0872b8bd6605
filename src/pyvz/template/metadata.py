"""EZ template metadata: what the folders below the template area say.

    <area>/<dist>/<version>/<arch>/config/os/default/       a base OS template
    <area>/<dist>/<version>/<arch>/config/os/<set>/         an OS sub-template
    <area>/<dist>/<version>/<arch>/config/app/<app>/default/  an application template
    <area>/<dist>/<version>/<arch>/pm/                      data of the package manager

A template is named `<dist>-<version>-<arch>[-<set>]`.  Each fact is one small file; a folder with
a file `packages` is a template, one with `package_manager` too is a base template.
Source: vzpkg(8), vztt src/template.c.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import BadValue, TemplateError, TemplateNotFound

DEFAULT_SET = "default"
MAX_FILE = 1 << 20  # bytes; a metadata file is a page of text
NOT_DISTRIBUTIONS = frozenset({"cache", "conf", "lost+found"})


class Metadata(NamedTuple):
    """One folder of metadata files."""

    directory: Path

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return (self.directory / name).is_file()

    def text(self, name: str, default: str = "") -> str:
        """Return the file's text without surrounding white space, DEFAULT when it is not there."""
        path = self.directory / name
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE + 1)
        except (FileNotFoundError, NotADirectoryError):
            return default
        if len(data) > MAX_FILE:
            raise TemplateError(f"{path}: larger than {MAX_FILE} bytes")
        try:
            return data.decode().strip()
        except UnicodeDecodeError as error:
            raise TemplateError(f"{path}: not UTF-8 text") from error

    def lines(self, name: str) -> list[str]:
        """Return the file's lines without comments and blank ones."""
        found = (line.split("#", 1)[0].strip() for line in self.text(name).splitlines())
        return [line for line in found if line]

    def environment(self) -> dict[str, str]:
        """Return the NAME=VALUE lines of the file `environment`; raise TemplateError."""
        pairs = {}
        for line in self.lines("environment"):
            name, separator, value = line.partition("=")
            if not separator or not name.strip().isidentifier():
                raise TemplateError(f"{self.directory / 'environment'}: '{line}' is not NAME=VALUE")
            pairs[name.strip()] = value.strip().strip('"')
        return pairs

    def script(self, name: str) -> Path | None:
        """Return the path of an executable script of the template, None when it has none."""
        path = self.directory / name
        return path if path.is_file() and os.access(path, os.X_OK) else None


class OsTemplate(NamedTuple):
    """An OS template, base or sub-template."""

    area: Path
    dist: str
    version: str
    arch: str
    set_name: str = DEFAULT_SET

    @property
    def name(self) -> str:
        """`<dist>-<version>-<arch>`, and `-<set>` of a sub-template."""
        base = f"{self.dist}-{self.version}-{self.arch}"
        return base if self.set_name == DEFAULT_SET else f"{base}-{self.set_name}"

    @property
    def home(self) -> Path:
        """The folder of everything of this distribution, version and architecture."""
        return self.area / self.dist / self.version / self.arch

    @property
    def base(self) -> Metadata:
        """Metadata of the base template (package manager, repositories, ...)."""
        return Metadata(self.home / "config/os" / DEFAULT_SET)

    @property
    def own(self) -> Metadata:
        """Metadata of this very template."""
        return Metadata(self.home / "config/os" / self.set_name)

    @property
    def package_data(self) -> Path:
        """Where the package manager keeps downloaded lists and packages for this template."""
        return self.home / "pm"

    @property
    def package_manager(self) -> str:
        """The package manager's name as the template gives it; raises TemplateError."""
        name = self.base.text("package_manager")
        if not name:
            raise TemplateError(f"{self.base.directory / 'package_manager'} is missing or empty")
        return name

    @property
    def distribution(self) -> str:
        """The name for DISTRIBUTION in a container's configuration."""
        return self.base.text("distribution", self.dist)

    def packages(self) -> list[str]:
        """Return the packages of all install stages, in order; raise TemplateError without any."""
        sources = [self.base] if self.set_name == DEFAULT_SET else [self.base, self.own]
        names = [
            line
            for metadata in sources
            for stage in ("packages_0", "packages_1", "packages")
            for line in metadata.lines(stage)
        ]
        if not names:
            raise TemplateError(f"{self.own.directory / 'packages'} names no package")
        return list(dict.fromkeys(names))


class AppTemplate(NamedTuple):
    """An application template for one OS template."""

    os: OsTemplate
    name: str

    @property
    def own(self) -> Metadata:
        """Its metadata."""
        return Metadata(self.os.home / "config/app" / self.name / DEFAULT_SET)

    def packages(self) -> list[str]:
        """Return its packages; raise TemplateError when it names none."""
        names = self.own.lines("packages")
        if not names:
            raise TemplateError(f"{self.own.directory / 'packages'} names no package")
        return names


def machine() -> str:
    """Return this machine's architecture as templates spell it (x86_64, aarch64)."""
    return os.uname().machine


def os_templates(area: Path) -> list[OsTemplate]:
    """Return every OS template below AREA, sorted by name."""
    found = [
        OsTemplate(area, dist, version, arch, set_name)
        for dist in _folders(area)
        if dist not in NOT_DISTRIBUTIONS
        for version in _folders(area / dist)
        for arch in _folders(area / dist / version)
        for set_name in _folders(area / dist / version / arch / "config/os")
        if Metadata(area / dist / version / arch / "config/os" / set_name).has("packages")
    ]
    return sorted(found, key=lambda template: template.name)


def app_templates(os_template: OsTemplate) -> list[AppTemplate]:
    """Return every application template of OS_TEMPLATE, sorted by name."""
    found = (AppTemplate(os_template, name) for name in _folders(os_template.home / "config/app"))
    return [template for template in found if template.own.has("packages")]


def find_os(area: Path, name: str) -> OsTemplate:
    """Return the OS template of that NAME.

    A leading dot (the form of DEF_OSTEMPLATE) is dropped; without an architecture this machine's
    is meant.  Raises TemplateNotFound, with names that are near.
    """
    wanted = check_name(name)
    known = {template.name: template for template in os_templates(area)}
    for candidate in (wanted, f"{wanted}-{machine()}"):
        if candidate in known:
            return known[candidate]
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    if near:
        hint = "Did you mean " + " or ".join(near) + "?"
    else:
        hint = "'vzpkg list -O' shows the OS templates of this node."
    raise TemplateNotFound(f"there is no OS template '{wanted}'", hint=hint)


def find_app(os_template: OsTemplate, name: str) -> AppTemplate:
    """Return the application template NAME of OS_TEMPLATE; raise TemplateNotFound."""
    wanted = check_name(name)
    known = [template.name for template in app_templates(os_template)]
    if wanted in known:
        return AppTemplate(os_template, wanted)
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    hint = "Did you mean " + " or ".join(near) + "?" if near else ""
    raise TemplateNotFound(
        f"{os_template.name} has no application template '{wanted}'",
        hint=hint or f"'vzpkg list -A {os_template.name}' shows those it has.",
    )


def check_name(name: str) -> str:
    """Return a template's NAME without its leading dot; raise BadValue when it cannot be one."""
    bare = name.removeprefix(".")
    if not bare or bare[0] in ".-" or any(char in bare for char in "/\0 \t\n\"'$"):
        raise BadValue(f"'{name}' is not the name of a template")
    return bare


def _folders(directory: Path) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from (e.name for e in entries if not e.name.startswith(".") and e.is_dir())
