"""Reading a container's RPM database, and asking the node's dnf about it.

The database is data of the container, and librpm and sqlite are large parsers: a copy of it is
read by an unprivileged user (nobody, in a user namespace of its own, so that dnf believes itself
root), who can write only below the template's own folder `pm/guest`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyvz.errors import CommandFailed, TemplateError
from pyvz.linux import run
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.task import Progress
from pyvz.template.base import Package, Recipe, Update, run_inside
from pyvz.template.filelock import lock

# Where rpm keeps its database: Fedora since 36, and everybody else.
DATABASES = ("usr/lib/sysimage/rpm", "var/lib/rpm")
DBPATH = "/var/lib/rpm"  # what our own calls of rpm and dnf use; Debian's default is ~/.rpmdb
MAX_DATABASE = 256 << 20  # bytes
TIMEOUT = 3600.0
QUERY_TIMEOUT = 60.0
QUERY = r"%{NAME}\t%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\t%{ARCH}\t%{SUMMARY}\n"

# fmt: off
UNPRIVILEGED = (
    "setpriv", "--pdeathsig", "KILL", "--reuid=nobody", "--regid=nogroup", "--clear-groups",
    "unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child=KILL",
)
# fmt: on

_NOT_FOUND = re.compile(r"No match for argument: (\S+)")
_REMOVES = re.compile(r"^ (\S+)\s+\S+\s+\S+\s+\S+\s+[\d.]+ ?[kMG]?\s*$", re.MULTILINE)


def installed_packages(root: GuestRoot) -> list[Package]:
    """Return the packages that are installed below ROOT, sorted by name."""
    with tempfile.TemporaryDirectory(prefix="pyvz-rpm-") as scratch:
        home = Path(scratch)
        if not copy_database(root, home):
            return []
        give_away(home)
        text = run_inside(
            UNPRIVILEGED,
            ["rpm", f"--dbpath={home}{DBPATH}", "-qa", "--qf", QUERY],
            env={"HOME": os.fspath(home)},
            timeout=QUERY_TIMEOUT,
        ).stdout
    rows = (line.split("\t") for line in text.splitlines())
    found = [Package(*row) for row in rows if len(row) == 4 and row[0] != "gpg-pubkey"]
    return sorted(found)


def copy_database(root: GuestRoot, home: Path) -> bool:
    """Copy the database below ROOT to HOME/var/lib/rpm; return whether there is one."""
    target = Path(f"{home}{DBPATH}")
    for place in DATABASES:
        if not root.exists(place):
            continue
        names = [name for name in root.names(place) if name in _DATABASE_FILES]
        for name in names:
            target.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(root.read(f"{place}/{name}", limit=MAX_DATABASE))
        if names:
            write_macros(home, berkeley="Packages" in names)
            return True
    return False


_DATABASE_FILES = frozenset({"rpmdb.sqlite", "rpmdb.sqlite-wal", "Packages", "Packages.db"})


def write_macros(home: Path, *, berkeley: bool = False) -> None:
    """Tell rpm, whose HOME will be HOME, where and how the database is kept."""
    text = f"%_dbpath {DBPATH}\n"
    if berkeley:
        text += "%_db_backend bdb_ro\n"
    (home / ".rpmmacros").write_text(text, encoding="utf-8")


def write_configuration(home: Path, repositories: str) -> None:
    """Write what dnf and rpm read below HOME: dnf.conf, repos/ and .rpmmacros."""
    for name in ("repos", "cache", "log", "vars"):
        (home / name).mkdir(parents=True, exist_ok=True)
    (home / "dnf.conf").write_text("[main]\n", encoding="utf-8")
    (home / "repos/template.repo").write_text(repositories, encoding="utf-8")
    write_macros(home)


def give_away(path: Path) -> None:
    """Make everything below PATH (ours alone so far) the unprivileged user's."""
    user = pwd.getpwnam("nobody")
    os.chown(path, user.pw_uid, user.pw_gid)
    path.chmod(0o755)
    for directory, folders, files in os.walk(path):
        for name in (*folders, *files):
            os.chown(Path(directory, name), user.pw_uid, user.pw_gid, follow_symlinks=False)


class Solver:
    """The node's dnf, looking at a container's packages and a template's repositories.

    <home>/{repos,cache,log}     kept between calls, one user at a time (flock)
    <home>/root-*                an install root that holds nothing but the database, for one call
    """

    def __init__(
        self, recipe: Recipe, home: Path, options: Sequence[str], repositories: str
    ) -> None:
        self.recipe = recipe
        self.home = home
        self.options = options
        self.repositories = repositories
        self.root = home

    @contextlib.contextmanager
    def opened(self, root: GuestRoot, progress: Progress) -> Iterator[Solver]:
        """Copy the container's database for the length of the block."""
        write_configuration(self.home, self.repositories)
        with lock(self.home.parent / "guest", progress), contextlib.ExitStack() as stack:
            self.root = Path(tempfile.mkdtemp(prefix="root-", dir=self.home))
            stack.callback(shutil.rmtree, self.root, ignore_errors=True)
            if not copy_database(root, self.root):
                raise TemplateError("the container has no RPM database")
            give_away(self.home)
            yield self

    def offer(self, files: Sequence[Path]) -> list[Path]:
        """Copy local package files to where the unprivileged user can read them."""
        folder = self.root / "files"
        folder.mkdir(exist_ok=True)
        copies = [Path(shutil.copyfile(path, folder / path.name)) for path in files]
        give_away(folder)
        return copies

    def download(self, words: Sequence[str], progress: Progress) -> list[Path]:
        """Resolve and download what `dnf WORDS` would install; return the files.

        The files are moved to the scratch folder of the caller's block, and live as long as it.
        """
        progress.stage("Downloading packages")
        target = Path(tempfile.mkdtemp(prefix="download-", dir=self.root))
        give_away(target)
        self._dnf([*words, "--downloadonly", f"--downloaddir={target}"], progress)
        kept = self.home / "packages"
        kept.mkdir(exist_ok=True)
        found = []
        for path in sorted(target.glob("*.rpm")):
            path.replace(kept / path.name)
            found.append(kept / path.name)
        return found

    def updates(self, installed: Sequence[Package], progress: Progress) -> list[Update]:
        """Return what could be newer."""
        progress.stage("Reading the package lists")
        have = {f"{package.name}.{package.arch}": package.version for package in installed}
        # check-update ends with 100 when there is something: dnf(8).
        text = self._dnf(["check-update", "--quiet"], progress, codes=(0, 100))
        rows = (line.split() for line in text.partition("Obsoleting Packages")[0].splitlines())
        return [
            Update(row[0].rpartition(".")[0], have[row[0]], row[1])
            for row in rows
            if len(row) == 3 and row[0] in have
        ]

    def would_remove(self, packages: Sequence[str], progress: Progress) -> list[str]:
        """Return PACKAGES and the names of what needs them."""
        words = ["remove", "--assumeno", "--setopt=clean_requirements_on_remove=False"]
        return _REMOVES.findall(self._dnf([*words, *packages], progress, codes=(0, 1)))

    def _dnf(self, words: Sequence[str], progress: Progress, *, codes: Sequence[int] = (0,)) -> str:
        options = [
            word for word in self.options if word != "--assumeyes" or "--assumeno" not in words
        ]
        result = run_inside(
            UNPRIVILEGED,
            ["dnf", *options, f"--installroot={self.root}", *words],
            env={**self.recipe.environment, "HOME": os.fspath(self.root)},
            timeout=TIMEOUT,
            poll=progress.check,
            check=False,
        )
        if result.code in codes:
            return result.stdout
        missing = _NOT_FOUND.findall(result.stdout + result.stderr)
        if missing:
            names = ", ".join(dict.fromkeys(missing))
            raise TemplateError(f"{self.recipe.template} has no package {names}")
        if result.code < 0 or "conflict" not in result.stderr:
            raise run.failure(["dnf", *words], result)
        raise TemplateError("the packages do not fit", details=result.stderr) from CommandFailed(
            "dnf failed"
        )
