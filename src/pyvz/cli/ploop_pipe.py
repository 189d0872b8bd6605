"""ploop copy through a pipe or socket, in packets as the original has them (libploop, copy.c).

    marker(4) type(4) size(4) pad(4) position(8)    then so many bytes

They say what the image file has from a position on; what is not said are zeros.  A packet of no
bytes is the last one.  On a socket each is answered by an int, 0 for good; through a pipe nothing
can be answered, so there the data are packets of the type that wants no answer.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from pyvz.errors import ProtocolError, StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 1 << 20
_PACKET = struct.Struct("<IIIxxxxQ")
_MARKER = 0x4CC0AC3E
_DATA, _COMMAND, _UNANSWERED = 0, 1, 2
_SYNC = struct.pack("<I", 0)
_ANSWER = struct.Struct("<i")
_MOST = 64 << 20
_LARGEST = 1 << 50


def send(image: int, out: int) -> None:
    """Send the open image file; raises OSError, ProtocolError."""
    answered = _is_socket(out)
    kind = _DATA if answered else _UNANSWERED
    for position, length in _pieces(image):
        data = os.pread(image, length, position)
        _packet(out, kind, data, position, answered=answered)
    _packet(out, _COMMAND, _SYNC, 0, answered=answered)
    _packet(out, _DATA, b"", 0, answered=answered)


def _pieces(image: int) -> Iterator[tuple[int, int]]:
    """Yield (position, length) of what is no hole, and the last bytes, which tell the size."""
    size = os.fstat(image).st_size
    end = 0
    while end < size:
        try:
            start = os.lseek(image, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # nothing but a hole is left
        end = os.lseek(image, start, os.SEEK_HOLE)
        for position in range(start, end, PIECE):
            yield position, min(PIECE, end - position)
    if end < size:
        last = min(4096, size - end)
        yield size - last, last


def _packet(out: int, kind: int, data: bytes, position: int, *, answered: bool) -> None:
    _write(out, _PACKET.pack(_MARKER, kind, len(data), position) + data)
    if answered and _ANSWER.unpack(_read(out, _ANSWER.size))[0]:
        raise ProtocolError("The other side could not write the image")


def receive(source: int, path: str) -> int:
    """Make the new file `path` what a `send` says; return its size.

    Nothing is left when it fails.  Raises FileExistsError, OSError, ProtocolError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        size = _receive(source, fd)
        os.ftruncate(fd, size)
        os.fsync(fd)
        if _is_socket(source):
            _write(source, _ANSWER.pack(0))
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
    return size


def _receive(source: int, fd: int) -> int:
    answered = _is_socket(source)
    end = 0
    while True:
        marker, kind, size, position = _PACKET.unpack(_read(source, _PACKET.size))
        if marker != _MARKER or size > _MOST or position + size > _LARGEST:
            raise ProtocolError("This is no ploop image, or a damaged one")
        if size == 0:
            return end
        data = _read(source, size)
        if kind in (_DATA, _UNANSWERED):
            if position < end or data.count(0) != size:  # zeros behind the end are a hole
                _write_at(fd, data, position)
            end = max(end, position + size)
        elif kind == _COMMAND and data == _SYNC:
            os.fdatasync(fd)
        else:
            raise ProtocolError(f"A packet of type {kind} is not known")
        if answered and kind != _UNANSWERED:
            _write(source, _ANSWER.pack(0))


def _read(fd: int, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = os.read(fd, count - len(found))
        if not piece:
            raise ProtocolError("The image ended too early")
        found += piece
    return bytes(found)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _write_at(fd: int, data: bytes, position: int) -> None:
    if os.pwrite(fd, data, position) != len(data):
        raise StorageError("The image could not be written: there is no space left")


def _is_socket(fd: int) -> bool:
    return stat.S_ISSOCK(os.fstat(fd).st_mode)
