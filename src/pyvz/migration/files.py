"""The files of one flat directory over a channel (the images of CRIU).

    FILE name length(2) size(8), the name, then so many bytes     END

Names are checked, since they become paths over here.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Final

from pyvz.errors import ProtocolError
from pyvz.migration.wire import Channel, Reader
from pyvz.model.task import Progress

FILE, END = 1, 2
_HEAD: Final = struct.Struct("!BHQ")
_PIECE: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


def send(channel: Channel, directory: Path, progress: Progress) -> int:
    """Send every file of a directory; returns how many bytes there were."""
    found = sorted(path for path in directory.iterdir() if path.is_file() and not path.is_symlink())
    total = sum(path.stat().st_size for path in found)
    done = 0
    for path in found:
        with path.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            name = path.name.encode()
            channel.write(_HEAD.pack(FILE, len(name), size) + name)
            left = size
            while left:
                piece = source.read(min(left, _PIECE))
                if not piece:
                    raise ProtocolError(f"{path} became shorter")
                channel.write(piece)
                left -= len(piece)
                done += len(piece)
                progress.advance(done, total)
    channel.write(bytes([END]))
    return total


def receive(channel: Channel, directory: Path, timeout: float) -> None:
    """Write what `send` sends into a directory; raises ProtocolError, OSError (ENOSPC)."""
    reader = Reader(channel, timeout)
    while (kind := reader.exactly(1)[0]) == FILE:
        length, size = struct.unpack("!HQ", reader.exactly(10))
        name = reader.exactly(length).decode("ascii", "replace") if length < 256 else ""
        if not _NAME.fullmatch(name):
            raise ProtocolError("The other node sent a file with an impossible name")
        _write(reader, directory / name, size)
    if kind != END:
        raise ProtocolError(f"The other node sent files with a record of kind {kind}")


def _write(reader: Reader, path: Path, size: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o644)  # CRIU opens some as the root of the container
    try:
        while size:
            piece = reader.some(min(size, _PIECE))
            if not piece:
                raise ProtocolError("The data of the other node ended too early")
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
            size -= len(piece)
    finally:
        os.close(fd)
