"""Reading and writing files of a tree that somebody hostile may have made: a container's root.

Every path is resolved by the kernel with the tree as its root (openat2(2), RESOLVE_IN_ROOT): the
guest's symbolic links, absolute ones too, lead to places inside the tree only, whatever changes
meanwhile.  Nothing but regular files is read or written: a FIFO would block us, a device would do
something.  Paths may begin with a slash or not; they mean the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from pyvz.errors import GuestFileError
from pyvz.linux import syscall

MAX_FILE = 1 << 20  # bytes that `read` takes unless told otherwise
# RESOLVE_IN_ROOT gives up with EAGAIN when a rename somewhere could have fooled a ".." of the path.
RETRIES = 64
_RESOLVE = syscall.RESOLVE_IN_ROOT | syscall.RESOLVE_NO_MAGICLINKS


class GuestRoot:
    """The tree below one directory.  Used as `with GuestRoot.open(path) as guest:`."""

    def __init__(self, fd: int) -> None:
        """Take over FD, an open directory (O_PATH will do)."""
        self._root = fd

    @classmethod
    def open(cls, path: str | Path) -> GuestRoot:
        """Open the tree at PATH, a path of the node's own."""
        return cls(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def __enter__(self) -> GuestRoot:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the tree.  Idempotent."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def fileno(self) -> int:
        """Return the descriptor of the tree's root."""
        return self._root

    # Looking

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result:
        """Return what is known about a file; FileNotFoundError and other OSErrors."""
        with self._path(path, follow=follow) as fd:
            return os.fstat(fd)

    def exists(self, path: str) -> bool:
        """Whether there is something (at the end of links, too)."""
        try:
            self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if error.errno == errno.ELOOP:
                return False
            raise
        return True

    def is_dir(self, path: str) -> bool:
        """Whether it is a directory, or a link to one."""
        return self.exists(path) and stat.S_ISDIR(self.stat(path).st_mode)

    def is_file(self, path: str) -> bool:
        """Whether it is a regular file, or a link to one."""
        return self.exists(path) and stat.S_ISREG(self.stat(path).st_mode)

    def names(self, path: str) -> list[str]:
        """Return the sorted names in a directory; none when there is no such directory."""
        try:
            fd = self._openat(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def readlink(self, path: str) -> str:
        """Return what a symbolic link says; OSError EINVAL when it is none."""
        with self._parent(path) as (directory, name):
            return os.readlink(name, dir_fd=directory)

    def read(self, path: str, *, limit: int = MAX_FILE) -> bytes:
        """Return a regular file's content.

        Raises OSError (FileNotFoundError, ...), GuestFileError for another kind of file and for
        one of more than LIMIT bytes.
        """
        fd = self.open_file(path)
        try:
            data = bytearray()
            while len(data) <= limit and (chunk := os.read(fd, min(limit + 1, 1 << 20))):
                data += chunk
        finally:
            os.close(fd)
        if len(data) > limit:
            raise GuestFileError(f"/{path.lstrip('/')} inside has more than {limit} bytes")
        return bytes(data)

    def read_text(self, path: str, *, limit: int = MAX_FILE) -> str:
        """Return a regular file's text; bytes that are not UTF-8 survive as surrogates."""
        return self.read(path, limit=limit).decode("utf-8", "surrogateescape")

    def open_file(self, path: str) -> int:
        """Return a descriptor to read a regular file by; raises as `read` does."""
        with self._path(path) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise GuestFileError(f"/{path.lstrip('/')} inside is not a regular file")
            # Only now that the kind is certain it is really opened, without another look-up.
            # O_NONBLOCK: a lease that the guest holds on its file must not make us wait.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{fd}", flags)

    # Changing

    def write(
        self,
        path: str,
        data: bytes | str,
        *,
        mode: int | None = None,
        make_parents: bool = False,
    ) -> None:
        """Put a file in place, whole and at once (a new one, renamed over the former).

        mode: None keeps mode, owner and group of a former regular file (else 0644, root).  A
        symbolic link at PATH is replaced, not followed; the directories before may be links.
        Raises OSError; GuestFileError where something else than a file or link is.
        """
        if make_parents:
            self.mkdir(os.path.dirname(path.strip("/")), parents=True)
        content = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        with self._parent(path) as (directory, name):
            former = _lstat(directory, name)
            if former is not None and not (
                stat.S_ISREG(former.st_mode) or stat.S_ISLNK(former.st_mode)
            ):
                raise GuestFileError(f"/{path.lstrip('/')} inside is not a regular file")
            if former is not None and stat.S_ISLNK(former.st_mode):
                former = None
            temporary = _temporary(name)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(temporary, flags, 0o600, dir_fd=directory)
            try:
                _fill(fd, content, former, mode)
                os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                os.unlink(temporary, dir_fd=directory)
                raise
            finally:
                os.close(fd)

    def mkdir(self, path: str, mode: int = 0o755, *, parents: bool = False) -> None:
        """Make a directory; one that is there is fine, anything else there is an OSError."""
        path = path.strip("/")
        if not path:
            return
        try:
            found = self.stat(path)
        except FileNotFoundError:
            if parents:
                self.mkdir(os.path.dirname(path), parents=True)
            with self._parent(path) as (directory, name):
                os.mkdir(name, mode, dir_fd=directory)
            return
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)

    def symlink(self, target: str, path: str) -> None:
        """Make PATH a symbolic link that says TARGET, in place of a former file or link."""
        with self._parent(path) as (directory, name):
            temporary = _temporary(name)
            os.symlink(target, temporary, dir_fd=directory)
            try:
                os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                os.unlink(temporary, dir_fd=directory)
                raise

    def remove(self, path: str) -> None:
        """Remove a file, a link or an empty directory.  Idempotent."""
        try:
            with self._parent(path) as (directory, name):
                found = _lstat(directory, name)
                if found is None:
                    return
                if stat.S_ISDIR(found.st_mode):
                    os.rmdir(name, dir_fd=directory)
                else:
                    os.unlink(name, dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            return

    def chmod(self, path: str, mode: int) -> None:
        """Change the mode of a regular file or directory."""
        with self._path(path) as fd:
            kind = os.fstat(fd).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise GuestFileError(f"/{path.lstrip('/')} inside is no file and no directory")
            os.chmod(f"/proc/self/fd/{fd}", mode)

    # The way to a file

    @contextlib.contextmanager
    def _path(self, path: str, *, follow: bool = True) -> Iterator[int]:
        fd = self._openat(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """Yield the open directory of a path's last name, and that name."""
        directory, name = os.path.split(path.strip("/"))
        if name in ("", ".", ".."):
            raise GuestFileError(f"'{path}' does not name a file inside")
        fd = self._openat(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd, name
        finally:
            os.close(fd)

    def _openat(self, path: str, flags: int) -> int:
        inside = path.strip("/") or "."
        for _ in range(RETRIES - 1):
            with contextlib.suppress(BlockingIOError):
                return syscall.openat2(self._root, inside, flags, 0, _RESOLVE)
        return syscall.openat2(self._root, inside, flags, 0, _RESOLVE)


def _lstat(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _temporary(name: str) -> str:
    return f".{name[:200]}.{secrets.token_hex(6)}"


def _fill(fd: int, content: bytes, former: os.stat_result | None, mode: int | None) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    if former is not None and mode is None:
        os.fchown(fd, former.st_uid, former.st_gid)
        mode = stat.S_IMODE(former.st_mode)
    os.fchmod(fd, 0o644 if mode is None else mode)
    os.fsync(fd)
