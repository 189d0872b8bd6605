"""One QEMU storage daemon for one disk: started, found again, spoken to, ended.

    <directory>/pid      locked by the daemon for as long as it lives (F_OFD_SETLK, by QEMU)
    <directory>/disk     the disk as a raw file: a FUSE mount on this file
    <directory>/qmp      the socket of its monitor

A daemon belongs to nobody who started it: it lives in a session of its own and goes on when vzd
dies, like the mount that stands on it.  All that is known of it is in its directory, so whoever
comes next finds it there.  One daemon per disk: its death is the death of one disk, not of all.

It must end after the loop device above it, never before: what is in flight then is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from qemu.qmp import QMPClient, QMPError

from pyvz.errors import Busy, CommandFailed, StorageError, Timeout, Unsupported
from pyvz.linux import file, mount, process, run

log = logging.getLogger(__name__)
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # it logs every end as an error

PROGRAM: Final = "qemu-storage-daemon"
NODE: Final = "disk"  # of the block node that is shown
Node = Mapping[str, object]  # as blockdev-add takes it

_START_TIMEOUT: Final = 60.0
_ANSWER_TIMEOUT: Final = 60.0
_END_TIMEOUT: Final = 120.0  # all that is not written out yet is, at the end
_FLOCK: Final = struct.Struct("hh4xqqi4x")  # type whence start length pid
_OOM_SCORE: Final = "-900"


def why_not() -> str:
    """Return what this node lacks for storage daemons; empty when it can have them."""
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse: the kernel has no FUSE"
    for program in (PROGRAM, "qemu-img", "qemu-io"):
        if shutil.which(program, path=run.ENVIRONMENT["PATH"]) is None:
            return f"{program} is not installed"
    return ""


class Daemon:
    """The daemon of a directory, whether it runs or not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.device = directory / "disk"

    @property
    def pid(self) -> int | None:
        """The process, when it lives: it holds a lock that dies with it."""
        try:
            fd = os.open(self.directory / "pid", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            wanted = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
            found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted)
            if _FLOCK.unpack(found)[0] == fcntl.F_UNLCK:
                return None
            text = os.read(fd, 32).strip()
            return int(text) if text.isdigit() else None
        finally:
            os.close(fd)

    def start(
        self,
        nodes: Sequence[Node],
        *,
        readonly: bool = False,
        keys: Sequence[tuple[str, int]] = (),
    ) -> None:
        """Start it with block nodes, the last one named NODE, and show that one.

        keys: names by which the nodes call the keys of encrypted images, each with a descriptor
        that it is read from.
        Nothing may be there: `stop` first.  Raises Unsupported, StorageError; nothing is left then.
        """
        if why := why_not():
            raise Unsupported(f"Images cannot be shown by a storage daemon: {why}")
        self.directory.mkdir(mode=0o700)
        try:
            self._launch(nodes, keys, readonly=readonly)
        except CommandFailed as error:
            self.stop()
            text = f"{PROGRAM} did not start for {self.directory.parent}"
            raise StorageError(text, details=error.details or error.message) from error
        except BaseException:
            self.stop()
            raise
        self._spare()

    def _launch(
        self, nodes: Sequence[Node], keys: Sequence[tuple[str, int]], *, readonly: bool
    ) -> None:
        """Run the program, which comes back when its child shows the disk."""
        self.device.touch(mode=0o600)
        with contextlib.ExitStack() as files:
            listener = files.enter_context(socket.socket(socket.AF_UNIX))
            directory = _open_directory(self.directory)
            files.callback(os.close, directory)
            # The path of a socket has 107 bytes at most, that of a home may have more.
            listener.bind(f"/proc/self/fd/{directory}/qmp")
            listener.listen(1)
            number = listener.fileno()
            argv = self._argv(nodes, number, readonly=readonly)
            for name, key in keys:
                argv[1:1] = ["--object", f"secret,id={name},file=/proc/self/fd/{key}"]
            given = (number, *(key for _, key in keys))
            run.run(argv, timeout=_START_TIMEOUT, pass_fds=given)
        if self.pid is None or not mount.is_mount_point(self.device):
            raise StorageError(f"{PROGRAM} does not show {self.device}")

    def _argv(self, nodes: Sequence[Node], monitor: int, *, readonly: bool) -> list[str | Path]:
        export = {
            **{"type": "fuse", "id": "export", "node-name": NODE},
            **{"mountpoint": os.fspath(self.device), "writable": not readonly},
            "allow-other": "off",
        }
        words: list[str | Path] = [PROGRAM]
        for node in nodes:
            words += ["--blockdev", json.dumps(node)]
        words += ["--export", json.dumps(export)]
        words += ["--chardev", f"socket,id=monitor,fd={monitor},server=on,wait=off"]
        words += ["--monitor", "chardev=monitor"]
        words += ["--pidfile", self.directory / "pid", "--daemonize"]
        return words

    def _spare(self) -> None:
        """Ask the kernel to kill others first when memory runs out; not allowed is fine."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:  # noqa: ANN401
        """Run a command of the monitor; raises StorageError (refused, it is dead), Timeout."""
        try:
            return asyncio.run(asyncio.wait_for(self._execute(command, arguments), _ANSWER_TIMEOUT))
        except TimeoutError as error:
            raise Timeout(f"{PROGRAM} did not answer within {_ANSWER_TIMEOUT:g} s") from error
        except (QMPError, OSError, EOFError) as error:
            why = "it has ended" if self.pid is None else str(error)
            raise StorageError(f"{PROGRAM} could not do {command}", details=why) from error

    async def _execute(self, command: str, arguments: Mapping[str, object] | None) -> object:
        directory = _open_directory(self.directory)
        client = QMPClient("storage")
        try:
            await client.connect(f"/proc/self/fd/{directory}/qmp")
            return await client.execute(command, dict(arguments or {}))
        finally:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()
            os.close(directory)

    def resize(self, size: int) -> None:
        """Make the disk SIZE bytes large, and wait until the kernel sees it."""
        self.execute("block_resize", {"node-name": NODE, "size": size})
        deadline = time.monotonic() + _ANSWER_TIMEOUT
        while self.device.stat().st_size != size:  # FUSE keeps attributes for a second
            if time.monotonic() > deadline:
                raise Timeout(f"{self.device} has not got its new size")
            time.sleep(0.05)

    def flush(self) -> None:
        """Have all that was written to the disk on stable storage."""
        fd = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def stop(self) -> None:
        """End the daemon in order, and take its directory away; nothing there is fine.

        Whatever stood on the disk must be gone.  Raises Busy when it does not end.
        """
        if not self.directory.is_dir():
            return
        pid = self.pid
        if pid is not None:
            self._end(pid)
        mount.umount(self.device, lazy=True)  # stays when a daemon was killed
        file.remove_tree(self.directory)

    def _end(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError), process.Pidfd(pid) as handle:
            if self.pid != pid:
                return
            try:
                self.execute("quit")
            except (StorageError, Timeout) as error:
                log.warning("%s: %s", self.directory, error)
            if handle.wait(_END_TIMEOUT):
                return
            raise Busy(f"{PROGRAM} (pid {pid}) does not end", details=f"It shows {self.device}.")


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
