"""Files and trees of the node: written whole, locked, measured, copied and removed.

For files inside a container use GuestRoot (linux/guestroot.py, also found here).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pyvz.errors import Busy, ConfigError, Locked, NoSpace, StorageError
from pyvz.linux import run, syscall
from pyvz.linux.guestroot import GuestRoot
from pyvz.linux.mount import mounts
from pyvz.model.task import NoProgress, Progress

__all__ = [
    "GuestRoot",
    "copy_tree",
    "flock",
    "fsync_directory",
    "read_text_limited",
    "reflink",
    "remove_tree",
    "tree_inodes",
    "tree_size",
    "write_atomic",
]

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_HOISTED = ".pyvz-removing-"
# A directory deeper than this is first moved up, so that neither descriptors nor stack run out.
_MAX_DEPTH = 100
_PROGRESS_STEP = 256


def write_atomic(
    path: str | Path, data: bytes | str, mode: int = 0o644, *, durable: bool = True
) -> None:
    """Write a file of the node so that readers see the old or the new one, also after a crash.

    durable: after a crash of the machine, too; false for what has no meaning then.  A symbolic link
    (/etc/vz/conf/<id>.conf) is followed: the file that it names is replaced.
    Raises NoSpace, OSError.
    """
    path = os.path.realpath(path)
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name[:200]}.{secrets.token_hex(6)}")
    content = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, content)
            os.fchmod(fd, mode)
            if durable:
                os.fsync(fd)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{path} could not be written: no space left") from error
        raise
    if durable:
        fsync_directory(directory)


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def fsync_directory(path: str | Path) -> None:
    """Make the names in a directory survive a crash."""
    _with_directory(path, os.fsync)


def syncfs(directory: str | Path) -> None:
    """Write out the whole file system that a directory is in: syncfs(2)."""
    _with_directory(directory, syscall.syncfs)


def _with_directory(path: str | Path, call: Callable[[int], None]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call(fd)
    finally:
        os.close(fd)


def read_text_limited(path: str | Path, limit: int = 1 << 20) -> str:
    """Return a text file; bytes that are not UTF-8 survive as surrogates.

    Raises ConfigError when it is no regular file or has more than LIMIT bytes; OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(f"{path} is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ConfigError(f"{path} has more than {limit} bytes")
    return data.decode("utf-8", "surrogateescape")


@contextlib.contextmanager
def flock(path: str | Path, *, timeout: float = 0.0, shared: bool = False) -> Iterator[int]:
    """Hold the flock(2) on a file (made when missing) and yield its descriptor.

    Raises Locked when somebody else still holds it after `timeout` seconds.  A lock dies with its
    holder.  The file may be unlinked by its holder: then the name is opened anew.
    """
    deadline = time.monotonic() + timeout
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if _try_lock(fd, kind) and _names(path, fd):
                yield fd
                return
        finally:
            os.close(fd)
        if time.monotonic() >= deadline:
            raise Locked(f"{path} is locked by somebody else")
        time.sleep(min(0.05, max(0.0, deadline - time.monotonic())))


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _names(path: str | Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def reflink(source: str | Path, target: str | Path) -> bool:
    """Make the new file TARGET share all blocks with SOURCE; False: the file system cannot.

    Raises FileExistsError, OSError.  Nothing is left behind on failure.
    """
    with open(source, "rb") as old:
        mode = stat.S_IMODE(os.fstat(old.fileno()).st_mode)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        new = os.open(target, flags, mode)
        try:
            fcntl.ioctl(new, _FICLONE, old.fileno())
        except OSError as error:
            os.unlink(target)
            if error.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
                return False
            raise
        finally:
            os.close(new)
    return True


def copy_sparse(source: str | Path, target: str | Path, progress: Progress | None = None) -> None:
    """Make the new file TARGET a copy of SOURCE, sharing blocks where that can be; holes stay.

    Raises FileExistsError, CommandFailed, NoSpace, Cancelled; what was copied by then stays.
    """
    if not reflink(source, target):
        argv: list[str | Path] = ["cp", "--sparse=always", "--", source, target]
        run.run(argv, timeout=None, poll=(progress or NoProgress()).check)


def copy_tree(source: str | Path, target: str | Path, progress: Progress | None = None) -> None:
    """Copy everything in the directory SOURCE into the directory TARGET (made when missing).

    Owners, times, hard links, extended attributes, ACLs and holes are kept, blocks are shared
    where the file system can; what is mounted below SOURCE is left out.
    Raises CommandFailed, NoSpace, Cancelled; what was copied by then stays.
    """
    os.makedirs(target, exist_ok=True)
    argv = [
        "cp", "--archive", "--reflink=auto", "--sparse=auto", "--one-file-system",
        "--no-target-directory", "--", source, target,
    ]  # fmt: skip
    run.run(argv, timeout=None, poll=(progress or NoProgress()).check)


def tree_size(path: str | Path, progress: Progress | None = None) -> int:
    """Return the bytes of disk that a tree takes (hard links once, mounts below left out)."""
    return _du(path, ["--block-size=1"], progress)


def tree_inodes(path: str | Path, progress: Progress | None = None) -> int:
    """Return the number of files and directories in a tree (hard links once)."""
    return _du(path, ["--inodes"], progress)


def _du(path: str | Path, options: list[str], progress: Progress | None) -> int:
    # du(1) walks trees of any depth; a file that vanishes meanwhile makes it end with 1.
    argv = ["du", "--summarize", "--one-file-system", *options, "--", path]
    poll = (progress or NoProgress()).check
    result = run.run(argv, timeout=None, poll=poll, check=False)
    number = result.stdout.split("\t", 1)[0]
    if not number.isdigit():
        raise run.failure(["du"], result)
    return int(number)


def remove_tree(path: str | Path, progress: Progress | None = None) -> None:
    """Remove a tree.  Idempotent; a file or link at PATH itself is removed as well.

    Never follows a symbolic link and never crosses into a mount, however the tree changes while
    we work: every step is relative to an open directory.  Raises Busy, before anything is
    removed, when something is mounted in it; StorageError for files that cannot be removed
    (immutable ones); Cancelled.
    """
    path = os.path.abspath(path)
    below = mounts(os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)))
    if below:
        raise Busy(
            f"{path} cannot be removed: something is mounted in it",
            details="\n".join(entry.target for entry in below[:10]),
        )
    try:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(path)
            return
        _Removal(path, progress or NoProgress()).run()
        os.rmdir(path)
    except FileNotFoundError:
        return


class _Removal:
    """The removal of what is in one directory."""

    def __init__(self, path: str, progress: Progress) -> None:
        self.path = path
        self.progress = progress
        self.count = 0
        self.hoisted = 0

    def run(self) -> None:
        self.top = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._empty(self.top, self.path, 0)
            # What was too deep lies in the top directory now, and is not too deep any more.
            while self.hoisted:
                self.hoisted = 0
                self._empty(self.top, self.path, 0)
        finally:
            os.close(self.top)
        self.progress.advance(self.count, unit="files")

    def _empty(self, directory: int, path: str, depth: int) -> None:
        with os.scandir(directory) as entries:
            listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_directory in listed:
            with self._explained(f"{path}/{name}"):
                if not is_directory:
                    os.unlink(name, dir_fd=directory)
                elif depth >= _MAX_DEPTH:
                    self._hoist(directory, name)
                    continue
                else:
                    self._remove_directory(directory, name, f"{path}/{name}", depth)
            self._tick()

    def _remove_directory(self, directory: int, name: str, path: str, depth: int) -> None:
        # RESOLVE_NO_XDEV: a mount, even a bind of the same file system, is not entered.
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        resolve = syscall.RESOLVE_NO_XDEV | syscall.RESOLVE_NO_SYMLINKS
        fd = syscall.openat2(directory, name, flags, 0, resolve)
        try:
            self._empty(fd, path, depth + 1)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=directory)

    def _hoist(self, directory: int, name: str) -> None:
        self.hoisted += 1
        new = f"{_HOISTED}{secrets.token_hex(6)}"
        os.rename(name, new, src_dir_fd=directory, dst_dir_fd=self.top)

    def _tick(self) -> None:
        self.count += 1
        if self.count % _PROGRESS_STEP == 0:
            self.progress.advance(self.count, unit="files")

    @contextlib.contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise Busy(f"{path} cannot be removed: it is a mount point") from error
            if error.errno == errno.EPERM:
                raise StorageError(
                    f"{path} cannot be removed",
                    details="It, or its directory, is immutable or append-only.",
                    hint=f"Allow it with: chattr -R -i -a {self.path}",
                ) from error
            raise StorageError(
                f"{path} cannot be removed: {os.strerror(error.errno or 0)}"
            ) from error
