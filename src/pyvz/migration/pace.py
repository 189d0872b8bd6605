"""Whether compressing pays, by what was measured on this connection.  Pure.

A byte takes 1/rate seconds to be sent as it is; compressed, 1/speed to be compressed and then
shrunk/rate.  Where the network is faster than that (or the processor busier), data goes as it is.
"""

from __future__ import annotations

from typing import Final

_HALF: Final = 16 << 20  # bytes after which what was measured counts for half
_ENOUGH: Final = 4 << 20  # bytes sent before a judgement


class Mean:
    """Bytes and seconds, of which those long ago count little."""

    def __init__(self) -> None:
        self.size = 0.0
        self.seconds = 0.0

    def add(self, size: int, seconds: float) -> None:
        """Take one measurement."""
        keep = 0.5 ** (size / _HALF)
        self.size = self.size * keep + size
        self.seconds = self.seconds * keep + seconds

    def per_byte(self) -> float:
        """Return the seconds of one byte; 0 when nothing is known."""
        return self.seconds / self.size if self.size else 0.0


class Pace:
    """The measurements of one connection, in one direction."""

    def __init__(self) -> None:
        self._sent = Mean()
        self._packed = Mean()
        self._shrunk = Mean()  # its seconds: bytes that came out
        self._total = 0

    def sent(self, size: int, seconds: float) -> None:
        """So many bytes were taken by the connection in that time."""
        self._sent.add(size, seconds)
        self._total += size

    def packed(self, size: int, made: int, seconds: float) -> None:
        """So many bytes were compressed to `made` in that time."""
        self._packed.add(size, seconds)
        self._shrunk.add(size, made)

    def pays(self) -> bool:
        """Whether compressing what comes next saves time."""
        if self._total < _ENOUGH or not self._packed.size:
            return True
        saved = (1.0 - self._shrunk.per_byte()) * self._sent.per_byte()
        return self._packed.per_byte() < saved
