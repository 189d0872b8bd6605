"""The package manager of Debian and Ubuntu templates.

A cache is built by mmdebstrap.  In a container the work is split: the node's apt resolves and
downloads (against a copy of the container's dpkg status, without running anything), the files
are put into the container, and the container's own apt installs them, inside.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from pyvz.errors import CommandFailed, TemplateError
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.task import Progress
from pyvz.template.base import CONTAINED, Guest, Package, Recipe, Update, run_inside
from pyvz.template.dpkg import Solver, installed_packages
from pyvz.template.drop import dropped
from pyvz.template.repository import Repository

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i386": "i386", "ppc64le": "ppc64el"}
BUILD_TIMEOUT = 3600.0  # seconds; 30 s is usual, a slow mirror may need much longer
INSTALL_TIMEOUT = 3600.0
NONINTERACTIVE = {
    "DEBIAN_FRONTEND": "noninteractive",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}
# Keep what the administrator of the container changed, and ask nobody: dpkg(1).
KEEP_CONFIGURATION = (
    *("-o", "Dpkg::Options::=--force-confdef"),
    *("-o", "Dpkg::Options::=--force-confold"),
)
DROP = "var/cache/vzpkg"  # where package files are put inside a container

_COUNT = re.compile(r"(\d+) upgraded, (\d+) newly installed")
_STAGES = {
    "running apt-get update": "Reading the package lists",
    "downloading packages": "Downloading the base system",
    "extracting archives": "Unpacking the base system",
    "installing essential": "Installing the base system",
    "installing remaining": "Installing packages",
    "cleaning package lists": "Cleaning up",
}


def sources_text(repositories: Sequence[Repository], *, guest: bool = False) -> str:
    """Return the lines of a sources.list; for a guest without the node's key files."""
    lines = []
    for repository in repositories:
        if not repository.suite or not (repository.components or repository.suite.endswith("/")):
            raise TemplateError(
                f"'{repository.url} {repository.suite}' is no apt repository (URL suite component)"
            )
        options = []
        if repository.key and not guest:
            options.append(f"signed-by={repository.key}")
        if repository.trusted:
            options.append("trusted=yes")
        bracket = f"[{' '.join(options)}] " if options else ""
        words = (repository.url, repository.suite, *repository.components)
        lines.append(f"deb {bracket}{' '.join(words)}\n")
    return "".join(lines)


def build_argv(root: Path, recipe: Recipe) -> list[str]:
    """Return the command line of mmdebstrap (the sources come on its standard input)."""
    # fmt: off
    return [
        "mmdebstrap", "--verbose", "--mode=root", "--variant=minbase", "--format=directory",
        f"--architectures={architecture(recipe)}",
        f"--include={','.join(recipe.packages)}",
        "--aptopt=Acquire::Retries \"3\"",
        "--aptopt=APT::Install-Recommends \"false\"",
        # What apt leaves in the tree besides: without Translation files lists are half as big.
        "--aptopt=Acquire::Languages \"none\"",
        # A build that dies is begun anew, so no file has to be on the disk before it ends.
        "--dpkgopt=force-unsafe-io",
        "", os.fspath(root), "-",
    ]
    # fmt: on


def architecture(recipe: Recipe) -> str:
    """Return Debian's word for the recipe's architecture; raise TemplateError."""
    try:
        return ARCHITECTURES[recipe.arch]
    except KeyError:
        raise TemplateError(f"{recipe.template}: architecture '{recipe.arch}' is unknown") from None


class BuildWatch:
    """Turns what mmdebstrap and apt write into stages and counts of packages."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.total: int | None = None
        self.done = 0

    def line(self, text: str) -> None:
        """Take one line of output."""
        if text.startswith("I: "):
            for begin, stage in _STAGES.items():
                if text.startswith(begin, 3):
                    self.progress.stage(stage)
            self.done, self.total = 0, None
            return
        count = _COUNT.match(text)
        if count:
            # Every package is fetched, unpacked and set up.
            self.total = 3 * (int(count.group(1)) + int(count.group(2)))
            self.done = 0
        elif self.total and text.startswith(("Get:", "Unpacking ", "Setting up ")):
            self.done = min(self.done + 1, self.total)
            self.progress.advance(self.done, self.total, unit="steps")


class Manager:
    """apt; see PackageManager."""

    def build(self, root: Path, recipe: Recipe, progress: Progress) -> None:
        """Make a root folder with mmdebstrap."""
        if not recipe.repositories:
            raise TemplateError(f"{recipe.template} has no repositories")
        run_inside(
            CONTAINED,
            build_argv(root, recipe),
            input=sources_text(recipe.repositories),
            env=recipe.environment,
            timeout=BUILD_TIMEOUT,
            on_line=BuildWatch(progress).line,
            poll=progress.check,
        )
        # mmdebstrap notes its options there, and the sources with key files of this node.
        with GuestRoot.open(root) as tree:
            write_sources(tree, recipe)

    def installed(self, root: GuestRoot) -> list[Package]:
        """Return what dpkg's status says."""
        return installed_packages(root)

    def install(
        self, guest: Guest, recipe: Recipe, packages: Sequence[str], progress: Progress
    ) -> list[Package]:
        """Install packages with what they need."""
        words = ["install", "--", *packages]
        with solver(recipe).opened(guest.root, progress) as apt:
            plan = apt.plan(words, progress)
            files = apt.download(words, plan, progress)
        automatic = [name for name in plan.new if name not in packages]
        return self._install(guest, files, automatic, progress)

    def install_files(
        self, guest: Guest, recipe: Recipe, files: Sequence[Path], progress: Progress
    ) -> list[Package]:
        """Install .deb files of the node, with what they need from the repositories."""
        # apt takes local files by their path, and resolves them like any other package.
        words = ["install", "--", *(os.fspath(path.resolve()) for path in files)]
        with solver(recipe).opened(guest.root, progress) as apt:
            plan = apt.plan(words, progress)
            needed = apt.download(words, plan._replace(files=_without(plan.files, files)), progress)
        automatic = [name for name in plan.new if not _is_of(name, files)]
        return self._install(guest, [*needed, *files], automatic, progress)

    def remove(self, guest: Guest, packages: Sequence[str], progress: Progress) -> list[Package]:
        """Remove packages and what only they needed."""
        before = set(self.installed(guest.root))
        progress.stage("Removing packages")
        _inside(guest, ["apt-get", "-y", "--auto-remove", "remove", "--", *packages])
        return sorted(before - set(self.installed(guest.root)))

    def update(
        self, guest: Guest, recipe: Recipe, packages: Sequence[str], progress: Progress
    ) -> list[Package]:
        """Bring packages to their newest versions."""
        words = _update_words(packages)
        with solver(recipe).opened(guest.root, progress) as apt:
            plan = apt.plan(words, progress)
            if not plan.files:
                return []
            files = apt.download(words, plan, progress)
        return self._install(guest, files, plan.new, progress)

    def updates(self, root: GuestRoot, recipe: Recipe, progress: Progress) -> list[Update]:
        """Return what `update` of everything would change."""
        with solver(recipe).opened(root, progress) as apt:
            return list(apt.plan(_update_words(()), progress).updates)

    def would_remove(
        self, root: GuestRoot, recipe: Recipe, packages: Sequence[str], progress: Progress
    ) -> list[str]:
        """Return the names of what `remove` would remove, without what only they needed."""
        with solver(recipe).opened(root, progress) as apt:
            return list(apt.plan(["remove", "--", *packages], progress).removed)

    def clean(self, recipe: Recipe) -> None:
        """Drop lists and packages kept on the node."""
        for name in ("lists", "archives", "state", "etc"):
            shutil.rmtree(recipe.data / name, ignore_errors=True)

    def _install(
        self, guest: Guest, files: Sequence[Path], automatic: Sequence[str], progress: Progress
    ) -> list[Package]:
        """Put FILES into the container, let its own apt install them, and take them out again."""
        if not files:
            return []
        before = set(self.installed(guest.root))
        with dropped(guest.root, DROP, files, progress) as paths:
            progress.stage("Installing packages")
            # Files are named by their paths: apt takes these and no others, without any network.
            argv = ["apt-get", "-y", "--no-install-recommends", *KEEP_CONFIGURATION]
            _inside(guest, [*argv, "install", "--", *paths])
        if automatic:
            _inside(guest, ["apt-mark", "auto", *automatic])
        return sorted(set(self.installed(guest.root)) - before)


def write_sources(root: GuestRoot, recipe: Recipe) -> None:
    """Write the container's own sources.list."""
    root.write("etc/apt/sources.list", sources_text(recipe.repositories, guest=True).encode())


def solver(recipe: Recipe) -> Solver:
    """Return the node's apt for a recipe."""
    return Solver(recipe, architecture(recipe), sources_text(recipe.repositories))


def _update_words(packages: Sequence[str]) -> list[str]:
    if packages:
        return ["install", "--only-upgrade", "--", *packages]
    return ["upgrade", "--with-new-pkgs"]


def _without(names: Sequence[str], files: Sequence[Path]) -> tuple[str, ...]:
    return tuple(name for name in names if not _is_of(name.partition("_")[0], files))


def _is_of(name: str, files: Sequence[Path]) -> bool:
    """Whether one of the local FILES is the package NAME (name_version_arch.deb, or name.deb)."""
    return any(path.name.removesuffix(".deb").partition("_")[0] == name for path in files)


def _inside(guest: Guest, argv: Sequence[str]) -> str:
    """Run a program in the container; raise CommandFailed with its last words."""
    answer = guest.run(argv, env=NONINTERACTIVE, timeout=INSTALL_TIMEOUT)
    if answer.code != 0:
        raise CommandFailed(
            f"{argv[0]} inside the container failed with status {answer.code}",
            details="\n".join(answer.output.strip().splitlines()[-20:]),
        )
    return answer.output
