"""A disk as streams of what has changed on it, which one node writes down and another applies."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class StreamSource(Protocol):
    """A disk that is written down."""

    def next(self) -> AbstractContextManager[int]:
        """Yield a pipe that says what the disk has now and had not at the call before.

        It has to be read to its end; what went wrong with it is raised by the end of the block.
        """


class StreamSink(Protocol):
    """A disk that is made of what one like it is written down as."""

    def take(self, feed: Callable[[int], None]) -> None:
        """Have `feed(fd)` write one stream to a pipe, and apply it.

        Raises CommandFailed, NoSpace.
        """
