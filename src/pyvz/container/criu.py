"""Which CRIU works with the running kernel: found by a real dump and restore, kept per boot.

The distribution's own comes first, then what script/criu has built, newest first:

    /usr/local/lib/pyvz/criu/<version>/criu

The verdict is in <run>/criu.json, keyed by boot, kernel, and the files tried; a bad one is believed
for a minute.  As a program
(`python -m pyvz.container.criu [--quiet]`) it tells the verdict; exit status 0 when one works.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import CommandFailed, Timeout, Unsupported, VZError
from pyvz.linux import run
from pyvz.linux.file import flock, write_atomic
from pyvz.linux.process import boot_id

BUILT = Path("/usr/local/lib/pyvz/criu")
_DISTRIBUTION = (Path("/usr/sbin/criu"), Path("/usr/bin/criu"))
_CACHE = "criu.json"
_FORMAT = 1
_TEST_TIMEOUT = 150.0
_DOUBT = 60.0  # seconds for which a verdict is believed that no CRIU works
_LOCK_TIMEOUT = 400.0
_VERSION = re.compile(r"^Version: (\d+)\.(\d+)(?:\.(\d+))?", re.MULTILINE)
_HINT = "script/criu builds one that works with this kernel."

_guard = threading.Lock()


class Criu(NamedTuple):
    """A CRIU and what became of its test.  problem: why it cannot be used; "" when it can."""

    path: str
    version: tuple[int, ...]
    problem: str = ""

    @property
    def release(self) -> str:
        """The version as text."""
        return ".".join(str(number) for number in self.version) or "unknown"

    @property
    def has_lock_skip(self) -> bool:
        """Whether it can leave the locking of the network to us."""
        return self.version >= (4, 0)


class Verdict(NamedTuple):
    """The CRIU to use, if any, and all that were tried."""

    chosen: Criu | None
    tried: tuple[Criu, ...]

    def require(self) -> Criu:
        """Return the CRIU to use; raises Unsupported with the reason and what to do."""
        if self.chosen is not None:
            return self.chosen
        if not self.tried:
            raise Unsupported("There is no CRIU on this node", hint=_HINT)
        lines = [f"{each.path} ({each.release}): {each.problem}" for each in self.tried]
        raise Unsupported(
            "No CRIU on this node works with the running kernel",
            details="\n".join(lines),
            hint=_HINT,
        )

    def words(self) -> str:
        """Return the verdict in one line."""
        if self.chosen is not None:
            return f"{self.chosen.release} ({self.chosen.path})"
        if not self.tried:
            return "none installed"
        return "; ".join(f"{each.release} does not work: {each.problem}" for each in self.tried)


def find(run_directory: Path, *, fresh: bool = False) -> Verdict:
    """Return the verdict of this boot; the first call after a boot takes a second or two."""
    with _guard:
        files = candidates()
        key = [_FORMAT, boot_id(), os.uname().release, [_identity(path) for path in files]]
        cache = run_directory / _CACHE
        if not fresh and (known := _load(cache, key)) is not None:
            return known
        os.makedirs(run_directory, exist_ok=True)
        with flock(run_directory / f".{_CACHE}.lock", timeout=_LOCK_TIMEOUT):
            if not fresh and (known := _load(cache, key)) is not None:
                return known
            verdict = _tried(files)
            write_atomic(cache, json.dumps({"key": key, "verdict": verdict}), 0o644)
        return verdict


def candidates() -> list[Path]:
    """Return every CRIU of the machine, in the order in which they are tried."""
    found = [path for path in _DISTRIBUTION if path.exists()][:1]
    with suppress(OSError):
        built = [path for path in BUILT.iterdir() if re.fullmatch(r"\d+(\.\d+)*", path.name)]
        built.sort(key=lambda path: [int(part) for part in path.name.split(".")], reverse=True)
        found += [path / "criu" for path in built if (path / "criu").exists()]
    return found


def _tried(files: list[Path]) -> Verdict:
    tried: list[Criu] = []
    for path in files:
        tried.append(attempt(path))
        if not tried[-1].problem:
            return Verdict(tried[-1], tuple(tried))
    return Verdict(None, tuple(tried))


def attempt(path: Path) -> Criu:
    """Test one CRIU by a dump and a restore (criutest.py) in namespaces of their own."""
    try:
        version = _version(path)
    except (VZError, OSError) as error:
        return Criu(os.fspath(path), (), f"it does not start: {error}")
    directory = tempfile.mkdtemp(prefix="pyvz-criu-")
    try:
        problem = _test(path, directory, version)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return Criu(os.fspath(path), version, problem)


def _version(path: Path) -> tuple[int, ...]:
    found = _VERSION.search(run.run([path, "--version"], timeout=10).stdout)
    if found is None:
        raise Unsupported(f"{path} --version says nothing that we understand")
    return tuple(int(part or 0) for part in found.groups())


def _test(path: Path, directory: str, version: tuple[int, ...]) -> str:
    """Return what is wrong with it, "" for nothing."""
    lock = "skip" if version >= (4, 0) else "iptables"
    # fmt: off
    # A slave of the node's mounts: it must not hold the disks of others while it runs.
    argv = ["unshare", "--net", "--mount", "--propagation", "slave",
            "--pid", "--fork", "--kill-child", "--mount-proc",
            sys.executable, "-I", "-m", "pyvz.container.criutest", os.fspath(path), directory, lock]
    # fmt: on
    try:
        done = run.run(argv, timeout=_TEST_TIMEOUT, check=False)
    except (CommandFailed, Timeout) as error:
        return f"its test failed: {error}"
    if done.code == 0:
        return ""
    words = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    return words[-1] if words else f"its test ended with status {done.code}"


def _identity(path: Path) -> list[str | int]:
    found = path.stat()
    return [os.fspath(path), found.st_size, found.st_mtime_ns]


def _load(cache: Path, key: list[object]) -> Verdict | None:
    """Return the verdict that is kept; None: there is none, or it was bad and is not fresh.

    A test may fail because the machine has just no memory, time or descriptors to spare.
    """
    try:
        age = time.time() - cache.stat().st_mtime
        stored = json.loads(cache.read_text(encoding="utf-8"))
        if stored["key"] != key:
            return None
        chosen, tried = stored["verdict"]
        if chosen is None and age > _DOUBT:
            return None
        made = [Criu(each[0], tuple(each[1]), each[2]) for each in tried]
        return Verdict(made[-1] if chosen is not None else None, tuple(made))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def main(words: list[str]) -> int:
    """Tell whether there is a CRIU that works; see the module's text."""
    with tempfile.TemporaryDirectory() as directory:
        verdict = find(Path(directory), fresh=True)
    if "--quiet" not in words:
        sys.stdout.write(f"CRIU: {verdict.words()}\n")
    return 0 if verdict.chosen is not None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
