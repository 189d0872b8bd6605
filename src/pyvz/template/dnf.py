"""The package manager of RPM templates: AlmaLinux, Rocky, Fedora, ...

A cache is built by the node's dnf into an install root.  In a container the work is split as for
apt: the node's dnf resolves and downloads against a copy of the container's RPM database (as an
unprivileged user: the database is the container's data), the container's own dnf, or rpm where
there is none, installs inside.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from pyvz.errors import CommandFailed, TemplateError
from pyvz.linux import run
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.task import Progress
from pyvz.template.base import CONTAINED, Guest, Package, Recipe, Update, run_inside
from pyvz.template.drop import dropped
from pyvz.template.repository import Repository
from pyvz.template.rpmdb import DATABASES, Solver, installed_packages, write_configuration

BUILD_TIMEOUT = 7200.0
INSTALL_TIMEOUT = 3600.0
DROP = "var/cache/vzpkg"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}

_STEP = re.compile(r"\s*(?:Installing|Upgrading|Erasing|Cleanup|Verifying)\s*:.*?(\d+)/(\d+)\s*$")
_FETCH = re.compile(r"\((\d+)/(\d+)\): ")


def repository_file(recipe: Recipe) -> str:
    """Return the text of a .repo file for the recipe; raise TemplateError.

    Unsigned packages are refused, unless the line of the repository says trusted=yes.
    """
    if not recipe.repositories:
        raise TemplateError(f"{recipe.template} has no repositories")
    return "\n".join(
        _section(f"{recipe.template}-{number}", repository, recipe.template)
        for number, repository in enumerate(recipe.repositories)
    )


def _section(name: str, repository: Repository, template: str) -> str:
    if not repository.key and not repository.trusted:
        raise TemplateError(
            f"{template}: no signing key for {repository.url}",
            hint="Name one in the template's file 'gpgkey', or mark the repository [trusted=yes].",
        )
    key = repository.key
    lines = [
        f"[{name}]",
        f"name={name}",
        f"{'mirrorlist' if repository.mirrors else 'baseurl'}={repository.url}",
        "enabled=1",
        f"gpgcheck={0 if repository.trusted else 1}",
    ]
    if key:
        lines.append(f"gpgkey={'file://' + key if key.startswith('/') else key}")
    return "\n".join(lines) + "\n"


def options(recipe: Recipe, home: Path) -> list[str]:
    """Return the options that make dnf forget everything that it knows of the node.

    home: a folder with repos/; caches go below it too.
    """
    return [
        "--assumeyes",
        "--noplugins",
        f"--releasever={recipe.release}",
        f"--forcearch={recipe.arch}",
        f"--config={home / 'dnf.conf'}",
        f"--setopt=reposdir={home / 'repos'}",
        f"--setopt=cachedir={home / 'cache'}",
        f"--setopt=logdir={home / 'log'}",
        f"--setopt=varsdir={home / 'vars'}",
        "--setopt=keepcache=True",
        "--setopt=install_weak_deps=False",
        "--setopt=best=True",
        f"--setopt=metadata_expire={max(1, min(int(recipe.expire), 1 << 30))}",
        *(["--refresh"] if not recipe.expire else []),
        *(f"--exclude={glob}" for glob in recipe.exclude),
    ]


class TransactionWatch:
    """Turns what dnf writes into stages and counts of packages."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.stage = ""

    def line(self, text: str) -> None:
        """Take one line of output."""
        for pattern, stage in ((_FETCH, "Downloading packages"), (_STEP, "Installing packages")):
            match = pattern.match(text)
            if match:
                if stage != self.stage:
                    self.progress.stage(stage)
                    self.stage = stage
                self.progress.advance(int(match.group(1)), int(match.group(2)), unit="packages")


class Manager:
    """dnf; see PackageManager."""

    def build(self, root: Path, recipe: Recipe, progress: Progress) -> None:
        """Make a root folder with dnf."""
        home = recipe.data / "build"
        write_configuration(home, repository_file(recipe))
        progress.stage("Reading the package lists")
        argv = ["dnf", *options(recipe, home), f"--installroot={root}", "install"]
        run_inside(
            CONTAINED,
            [*argv, *recipe.packages],
            env={**recipe.environment, "HOME": os.fspath(home)},
            timeout=BUILD_TIMEOUT,
            on_line=TransactionWatch(progress).line,
            poll=progress.check,
        )
        progress.stage("Converting the RPM database")
        convert_database(root, home, progress)

    def installed(self, root: GuestRoot) -> list[Package]:
        """Return what the RPM database says."""
        return installed_packages(root)

    def install(
        self, guest: Guest, recipe: Recipe, packages: Sequence[str], progress: Progress
    ) -> list[Package]:
        """Install packages with what they need."""
        with solver(recipe).opened(guest.root, progress) as dnf:
            files = dnf.download(["install", *packages], progress)
        return self._install(guest, files, progress)

    def install_files(
        self, guest: Guest, recipe: Recipe, files: Sequence[Path], progress: Progress
    ) -> list[Package]:
        """Install .rpm files of the node, with what they need from the repositories."""
        with solver(recipe).opened(guest.root, progress) as dnf:
            copies = dnf.offer(files)
            needed = dnf.download(["install", *(os.fspath(path) for path in copies)], progress)
            names = {path.name for path in files}
        return self._install(
            guest, [*files, *(path for path in needed if path.name not in names)], progress
        )

    def remove(self, guest: Guest, packages: Sequence[str], progress: Progress) -> list[Package]:
        """Remove packages and, where the container has dnf, what only they needed."""
        before = set(self.installed(guest.root))
        progress.stage("Removing packages")
        if _has_dnf(guest.root):
            _inside(guest, ["dnf", "-y", "--disablerepo=*", "remove", *packages])
        else:
            _inside(guest, ["rpm", "--erase", *packages])
        return sorted(before - set(self.installed(guest.root)))

    def update(
        self, guest: Guest, recipe: Recipe, packages: Sequence[str], progress: Progress
    ) -> list[Package]:
        """Bring packages to their newest versions."""
        with solver(recipe).opened(guest.root, progress) as dnf:
            files = dnf.download(["upgrade", *packages], progress)
        return self._install(guest, files, progress)

    def updates(self, root: GuestRoot, recipe: Recipe, progress: Progress) -> list[Update]:
        """Return what `update` of everything would change."""
        with solver(recipe).opened(root, progress) as dnf:
            return dnf.updates(self.installed(root), progress)

    def would_remove(
        self, root: GuestRoot, recipe: Recipe, packages: Sequence[str], progress: Progress
    ) -> list[str]:
        """Return the names of the packages that need PACKAGES, and these."""
        with solver(recipe).opened(root, progress) as dnf:
            return dnf.would_remove(packages, progress)

    def clean(self, recipe: Recipe) -> None:
        """Drop lists and packages kept on the node."""
        for name in ("build", "guest"):
            shutil.rmtree(recipe.data / name, ignore_errors=True)

    def _install(self, guest: Guest, files: Sequence[Path], progress: Progress) -> list[Package]:
        if not files:
            return []
        before = set(self.installed(guest.root))
        with dropped(guest.root, DROP, files, progress) as paths:
            progress.stage("Installing packages")
            if _has_dnf(guest.root):
                _inside(guest, ["dnf", "-y", "--disablerepo=*", "install", *paths])
            else:
                _inside(guest, ["rpm", "--upgrade", *paths])
        return sorted(set(self.installed(guest.root)) - before)


def solver(recipe: Recipe) -> Solver:
    """Return the node's dnf for a recipe."""
    home = recipe.data / "guest"
    return Solver(recipe, home, options(recipe, home), repository_file(recipe))


def convert_database(root: Path, home: Path, progress: Progress) -> None:
    """Let the tree's own rpm write its database, where and how that version keeps it.

    The node's rpm may use another folder or format (EL 8 has Berkeley DB, Fedora
    /usr/lib/sysimage/rpm).  The tree's rpmdb runs like its packages' scripts: in a chroot, in
    namespaces that end with us.
    """
    if not os.access(root / "usr/bin/rpmdb", os.X_OK):
        return
    exported = root.parent / "rpmdb.export"
    fd = os.open(exported, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        run.run(
            ["rpmdb", f"--root={root}", "--exportdb"],
            stdout_fd=fd,
            env={"HOME": os.fspath(home)},
            timeout=INSTALL_TIMEOUT,
            poll=progress.check,
        )
        for name in DATABASES:
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir(parents=True, exist_ok=True)
        os.lseek(fd, 0, os.SEEK_SET)
        run_inside(
            CONTAINED,
            ["chroot", root, "/usr/bin/rpmdb", "--importdb"],
            stdin_fd=fd,
            timeout=INSTALL_TIMEOUT,
            poll=progress.check,
        )
    finally:
        os.close(fd)
        exported.unlink(missing_ok=True)


def _has_dnf(root: GuestRoot) -> bool:
    return root.exists("usr/bin/dnf") or root.exists("usr/bin/dnf5")


def _inside(guest: Guest, argv: Sequence[str]) -> str:
    """Run a program in the container; raise CommandFailed with its last words."""
    answer = guest.run(argv, env=ENVIRONMENT, timeout=INSTALL_TIMEOUT)
    if answer.code != 0:
        raise CommandFailed(
            f"{argv[0]} inside the container failed with status {answer.code}",
            details="\n".join(answer.output.strip().splitlines()[-20:]),
        )
    return answer.output
