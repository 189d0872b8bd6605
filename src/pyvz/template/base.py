"""What a package manager of EZ templates does; managers are modules found by name.

A package manager works on two things: a fresh folder on the node (`build`, for a cache: only
packages of the distribution run there), and a container, through `Guest`: its files are hostile
and its programs run inside it only, never on the node.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Unpack

from pyvz.errors import CommandFailed, TemplateError
from pyvz.linux import run
from pyvz.linux.guestroot import GuestRoot
from pyvz.linux.run import Result
from pyvz.model.task import Progress
from pyvz.template.repository import Repository

# What `package_manager` files say, and who does it here.  rpm410x64, rpm49db5x64, dpkg-x86_64,
# dpkgx64 ... are names of the original's helper environments (vztt src/env_compat.c).
_MANAGERS = (
    (re.compile(r"apt|dpkg.*|deb.*"), "apt"),
    (re.compile(r"dnf.*|yum.*|rpm.*"), "dnf"),
)

# Everything below dies with the thread that runs it, and with it its mounts: a killed vzd
# leaves no half-built tree behind that still grows.  pdeathsig: prctl(2), PR_SET_PDEATHSIG.
CONTAINED = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--propagation=slave", "--pid", "--fork", "--kill-child=KILL"),
    "--mount-proc",
)


def run_inside(prefix: Sequence[str], argv: run.Argv, **options: Unpack[run.RunOptions]) -> Result:
    """Run ARGV behind PREFIX (CONTAINED, ...); errors name the program, not the prefix."""
    try:
        return run.run([*prefix, *argv], **options)
    except CommandFailed as error:
        message = error.message.replace(prefix[0], Path(argv[0]).name, 1)
        raise CommandFailed(message, details=error.details) from error


class Package(NamedTuple):
    """One installed or available package."""

    name: str
    version: str
    arch: str
    summary: str = ""


class Update(NamedTuple):
    """A package that could be newer."""

    name: str
    installed: str
    available: str


class Recipe(NamedTuple):
    """All that a package manager must know about a template.

    arch: as templates spell it.  environment: for its programs (proxies).  data: where it keeps
    lists and packages between two calls.  release: the distribution's version.
    """

    template: str
    arch: str
    release: str
    packages: tuple[str, ...]
    repositories: tuple[Repository, ...]
    environment: Mapping[str, str]
    data: Path
    exclude: tuple[str, ...] = ()
    expire: float = 86400.0  # seconds after which package lists are fetched again


class Answer(NamedTuple):
    """How a program inside a container ended."""

    code: int
    output: str


class Guest(Protocol):
    """A running container as package managers see it."""

    root: GuestRoot

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        timeout: float,
        on_line: Callable[[str], None] | None = None,
    ) -> Answer:
        """Run a program inside; a failure is an Answer, not an exception."""


class PackageManager(Protocol):
    """The interface of `apt` and `dnf`.

    Every method that works in a container raises CommandFailed with the program's last words, and
    TemplateError when a package does not exist.
    """

    def build(self, root: Path, recipe: Recipe, progress: Progress) -> None:
        """Fill the empty folder ROOT with the recipe's packages."""

    def installed(self, root: GuestRoot) -> list[Package]:
        """Return what is installed below ROOT, sorted by name."""

    def install(
        self, guest: Guest, recipe: Recipe, packages: Sequence[str], progress: Progress
    ) -> list[Package]:
        """Install packages that the node downloads; return what is new or newer."""

    def install_files(
        self, guest: Guest, recipe: Recipe, files: Sequence[Path], progress: Progress
    ) -> list[Package]:
        """Install package files of the node; return what is new or newer."""

    def remove(self, guest: Guest, packages: Sequence[str], progress: Progress) -> list[Package]:
        """Remove packages; return what is gone."""

    def update(
        self, guest: Guest, recipe: Recipe, packages: Sequence[str], progress: Progress
    ) -> list[Package]:
        """Bring PACKAGES, all when empty, to their newest versions; return what is newer."""

    def updates(self, root: GuestRoot, recipe: Recipe, progress: Progress) -> list[Update]:
        """Return what `update` would change."""

    def would_remove(
        self, root: GuestRoot, recipe: Recipe, packages: Sequence[str], progress: Progress
    ) -> list[str]:
        """Return the names of PACKAGES and of the packages that need them."""

    def clean(self, recipe: Recipe) -> None:
        """Drop lists and packages kept on the node."""


def module_name(name: str) -> str:
    """Return the module that does what a `package_manager` file names; raise TemplateError."""
    for pattern, module in _MANAGERS:
        if pattern.fullmatch(name):
            return module
    raise TemplateError(f"the package manager '{name}' is not known")


def load(name: str) -> PackageManager:
    """Return the package manager of that name; raise TemplateError for an unknown one."""
    module = importlib.import_module(f"pyvz.template.{module_name(name)}")
    manager: PackageManager = module.Manager()
    return manager
