"""A disk as streams of what has changed on it, which one node writes down and another applies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class StreamSource(Protocol):
    """A disk that is written down with its snapshots."""

    def arm(self) -> None:
        """Have the next round begin at once, as far as it can."""

    def round(self, *, still: bool = False) -> Iterator[AbstractContextManager[int]]:
        """Yield the streams that say what the disk has now and had not at the call before.

        The first time there is one for each snapshot before.  Each is a pipe for the length of a
        block, and has to be read to its end; what went wrong with it is raised by that of the
        block.  still: nothing changes the disk any more.
        """


class StreamSink(Protocol):
    """A disk that is made, with its snapshots, of what one like it is written down as."""

    def take(self, feed: Callable[[int], None]) -> None:
        """Have `feed(fd)` write one stream to a pipe, and apply it.

        Raises CommandFailed, NoSpace.
        """
