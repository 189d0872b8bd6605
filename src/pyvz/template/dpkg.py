"""Reading a container's dpkg status, and asking the node's apt about it.

The status file is data of the container; it is copied, with a limit, into the node's own folder
of the template, and apt reads the copy.  apt resolves and downloads there; it never runs
anything of the container.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import CommandFailed, TemplateError
from pyvz.linux import run
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.task import Progress
from pyvz.template.base import Package, Recipe, Update
from pyvz.template.filelock import lock

STATUS = "var/lib/dpkg/status"
AUTO = "var/lib/apt/extended_states"
MAX_STATUS = 64 << 20  # bytes; 150 packages take 150 kB
DOWNLOAD_TIMEOUT = 3600.0
_FOLDERS = ("lists/partial", "archives/partial", "state", "etc/apt.conf.d", "etc/preferences.d")
_NOT_FOUND = re.compile(
    r"E: (?:Unable to locate package|Package) '?([^\s']+)'?(?: has no installation candidate)?"
)
_INST = re.compile(r"Inst (\S+?)(?::\S+)? (?:\[(\S+)\] )?\((\S+) .*?\[(\w+)\]\)")


def installed_packages(root: GuestRoot) -> list[Package]:
    """Return the packages that are installed below ROOT, sorted by name."""
    if not root.exists(STATUS):
        return []
    text = root.read_text(STATUS, limit=MAX_STATUS)
    return sorted(_packages(text), key=lambda package: (package.name, package.arch))


def _packages(text: str) -> Iterator[Package]:
    for stanza in text.split("\n\n"):
        fields = dict(_fields(stanza))
        if fields.get("Status", "").endswith(" ok installed") and "Package" in fields:
            yield Package(
                fields["Package"],
                fields.get("Version", ""),
                fields.get("Architecture", ""),
                fields.get("Description", ""),
            )


def _fields(stanza: str) -> Iterator[tuple[str, str]]:
    for line in stanza.splitlines():
        if line[:1] not in {"", " ", "\t"}:
            name, _, value = line.partition(":")
            yield name, value.strip()


class Plan(NamedTuple):
    """What apt would do: package files in the order of their installation, and removals."""

    files: tuple[str, ...]  # names below the folder of archives
    updates: tuple[Update, ...]  # of what is installed already
    new: tuple[str, ...]  # names of packages that are not
    removed: tuple[str, ...]


def parse_plan(text: str) -> Plan:
    """Return what the output of `apt-get --simulate` means.

    Inst libc6 [2.36-9+deb12u9] (2.36-9+deb12u14 Debian:12.15/oldstable [amd64]) ...
    Inst nginx (1.22.1-9 Debian:12.15/oldstable [amd64])
    Remv exim4 [4.96-15]
    """
    files, updates, new, removed = [], [], [], []
    for line in text.splitlines():
        if line.startswith("Remv "):
            removed.append(line.split()[1])
        match = _INST.match(line)
        if match:
            name, old, version, arch = match.groups()
            # apt quotes these in file names: apt-pkg/contrib/strutl.cc, QuoteString("_:").
            quoted = version.replace(":", "%3a").replace("_", "%5f")
            files.append(f"{name}_{quoted}_{arch}.deb")
            if old:
                updates.append(Update(name, old, version))
            else:
                new.append(name)
    return Plan(tuple(files), tuple(updates), tuple(new), tuple(removed))


class Solver:
    """The node's apt, looking at a container's packages and a template's repositories.

    <data>/{lists,archives,etc}    kept between calls, one user at a time (flock on etc/lock)
    <data>/state/solve-*           the copy of the container's status, for one call
    """

    def __init__(self, recipe: Recipe, architecture: str, sources: str) -> None:
        self.recipe = recipe
        self.architecture = architecture
        self.sources = sources
        self.home = recipe.data
        self.scratch = self.home / "state"

    @contextlib.contextmanager
    def opened(self, root: GuestRoot, progress: Progress) -> Iterator[Solver]:
        """Copy the container's status, and bring the lists up to date when they are too old."""
        for name in _FOLDERS:
            (self.home / name).mkdir(parents=True, exist_ok=True)
        with lock(self.home / "etc/apt", progress), contextlib.ExitStack() as stack:
            self.scratch = Path(tempfile.mkdtemp(prefix="solve-", dir=self.home / "state"))
            stack.callback(shutil.rmtree, self.scratch, ignore_errors=True)
            for path in (STATUS, AUTO):
                data = root.read(path, limit=MAX_STATUS) if root.exists(path) else b""
                (self.scratch / Path(path).name).write_bytes(data)
            (self.home / "etc/sources.list").write_text(self.sources, encoding="utf-8")
            self.config = self.scratch / "apt.conf"
            self.config.write_text(self._configuration(), encoding="utf-8")
            if self._lists_age() > self.recipe.expire:
                self.refresh(progress)
            yield self

    def _configuration(self) -> str:
        """Return an apt.conf(5) that knows nothing of the node's own apt."""
        home, scratch = self.home, self.scratch
        return "".join(
            f'{name} "{value}";\n'
            for name, value in (
                ("APT::Architecture", self.architecture),
                ("APT::Architectures", self.architecture),
                ("APT::Install-Recommends", "false"),
                ("APT::Get::Assume-Yes", "true"),
                ("APT::Cmd::Disable-Script-Warning", "true"),
                ("Acquire::Languages", "none"),
                ("Acquire::Retries", "3"),
                ("Dir::Etc", home / "etc/"),
                ("Dir::Etc::SourceList", home / "etc/sources.list"),
                ("Dir::Etc::SourceParts", "/dev/null"),
                ("Dir::Etc::TrustedParts", "/etc/apt/trusted.gpg.d/"),
                ("Dir::State", scratch),
                ("Dir::State::Lists", home / "lists/"),
                ("Dir::State::Status", scratch / "status"),
                ("Dir::State::Extended_States", scratch / "extended_states"),
                ("Dir::Cache", scratch),
                ("Dir::Cache::Archives", home / "archives/"),
                ("Dir::Log", scratch),
            )
        )

    def _lists_age(self) -> float:
        stamp = self.home / "etc/updated"
        try:
            if stamp.read_text(encoding="utf-8") != self.sources:
                return float("inf")
            return time.time() - stamp.stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    def refresh(self, progress: Progress) -> None:
        """Fetch the package lists."""
        progress.stage("Reading the package lists")
        self._apt(["update", "--error-on=any"], progress)
        (self.home / "etc/updated").write_text(self.sources, encoding="utf-8")

    def plan(self, words: Sequence[str], progress: Progress) -> Plan:
        """Return what `apt-get WORDS` would do; raise TemplateError for unknown packages."""
        try:
            return parse_plan(self._apt(["--simulate", *words], progress))
        except CommandFailed as error:
            missing = _NOT_FOUND.findall(error.details)
            if missing:
                raise TemplateError(
                    f"{self.recipe.template} has no package {', '.join(dict.fromkeys(missing))}",
                    details=error.details,
                ) from error
            raise TemplateError("apt finds no way to do that", details=error.details) from error

    def download(self, words: Sequence[str], plan: Plan, progress: Progress) -> list[Path]:
        """Download the files of PLAN (of `apt-get WORDS`) and return them."""
        progress.stage("Downloading packages")
        watch = _Downloads(progress, len(plan.files))
        try:
            self._apt(["--download-only", *words], progress, watch.line)
        except CommandFailed:
            # The lists may be older than what the mirror still has.
            self.refresh(progress)
            self._apt(["--download-only", *words], progress, watch.line)
        found = [self.home / "archives" / name for name in plan.files]
        missing = [path.name for path in found if not path.is_file()]
        if missing:
            raise TemplateError(f"apt did not download {', '.join(missing)}")
        return found

    def _apt(
        self,
        words: Sequence[str],
        progress: Progress,
        on_line: Callable[[str], None] = lambda _: None,
    ) -> str:
        return run.run(
            ["apt-get", *words],
            env={**self.recipe.environment, "APT_CONFIG": os.fspath(self.config)},
            timeout=DOWNLOAD_TIMEOUT,
            on_line=on_line,
            poll=progress.check,
        ).stdout


class _Downloads:
    """Counts the packages that apt fetches."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress = progress
        self.total = total
        self.done = 0

    def line(self, text: str) -> None:
        if text.startswith("Get:") and self.done < self.total:
            self.done += 1
            self.progress.advance(self.done, self.total, unit="packages")
