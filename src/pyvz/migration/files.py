"""The files of one flat directory over a channel (the images of CRIU).

    PIECE name length(2) length(8), the name, then so many bytes     END

A file's pieces come in their order, those of several files in any; so memory is sent while CRIU
writes it (`Sender.piece`).  Names are checked, since they become paths over here.
"""

from __future__ import annotations

import os
import re
import struct
import threading
from pathlib import Path
from typing import Final

from pyvz.errors import ProtocolError
from pyvz.migration.wire import Channel, Reader
from pyvz.model.task import Progress

PIECE, END = 1, 2
SIZE: Final = 1 << 20  # bytes of a piece that is sent
SMALL: Final = 64 << 10
_HEAD: Final = struct.Struct("!BHQ")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_MOST: Final = 1 << 20  # files


class Sender:
    """Sends files, about `expected` bytes; its methods may be called by several threads."""

    def __init__(self, channel: Channel, progress: Progress, expected: int) -> None:
        self._channel = channel
        self._progress = progress
        self._expected = expected
        self._turn = threading.Lock()
        self._small = bytearray()  # what goes together
        self.total = 0

    def piece(self, name: str, _offset: int, data: bytes | memoryview) -> None:
        """Send the next piece of a file; raises Refused, ConnectionBroken, Cancelled."""
        with self._turn:
            self._small += _head(name, len(data))
            if len(data) < SMALL:
                self._small += data
            if len(data) >= SMALL or len(self._small) >= SIZE:
                self._flush()
            if len(data) >= SMALL:
                self._channel.write(data, poll=self._progress.check)
            self.total += len(data)
            self._progress.advance(self.total, max(self._expected, self.total))

    def rest(self, directory: Path) -> None:
        """Send every file that is there; then nothing more comes."""
        for path in sorted(directory.iterdir()):
            if path.is_file() and not path.is_symlink():
                self._file(path)
        with self._turn:
            self._small.append(END)
            self._flush()
        self._channel.end()

    def _file(self, path: Path) -> None:
        with path.open("rb") as source:
            at = 0
            while (data := source.read(SIZE)) or not at:
                self.piece(path.name, at, data)
                if not data:
                    break
                at += len(data)

    def _flush(self) -> None:
        self._channel.write(bytes(self._small), poll=self._progress.check)
        self._small = bytearray()


def _head(name: str, size: int) -> bytes:
    word = name.encode()
    return _HEAD.pack(PIECE, len(word), size) + word


def receive(channel: Channel, directory: Path, timeout: float) -> None:
    """Write what a Sender sends into a directory; raises ProtocolError, OSError (ENOSPC)."""
    reader = Reader(channel, timeout)
    known: set[str] = set()
    while (kind := reader.exactly(1)[0]) == PIECE:
        length, size = struct.unpack("!HQ", reader.exactly(10))
        name = reader.exactly(length).decode("ascii", "replace") if length < 256 else ""
        if not _NAME.fullmatch(name) or len(known) > _MOST:
            raise ProtocolError("The other node sent a file with an impossible name")
        _append(reader, directory / name, size, new=name not in known)
        known.add(name)
    if kind != END:
        raise ProtocolError(f"The other node sent files with a record of kind {kind}")


def _append(reader: Reader, path: Path, size: int, *, new: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    # CRIU opens some as the root of the container: they are for all to read.
    fd = os.open(path, flags | (os.O_TRUNC if new else 0), 0o644)
    try:
        while size:
            piece = reader.some(min(size, SIZE))
            if not piece:
                raise ProtocolError("The data of the other node ended too early")
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
            size -= len(piece)
    finally:
        os.close(fd)
