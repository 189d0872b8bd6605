"""An overlay with its snapshots goes to another node as archives of its layers.

    template-NAME/   the template that it stands on: once, and first
    {guid}/          each snapshot: once, as it lies
    upper/           what the container changed: again and again (linux/increments.py)

    <home>/overlay.sending/          here: what tar has seen
    <new home>/overlay.receiving/    there: where they are put together; then everything gets its
                                     place, and the template is one for all that stand on it

Layers go as they are on the disk, with white-outs and opaque directories, so that each is over
there what it is here.  Read below a mounted overlay they are what it shows: it writes to files of
its upper layer and nowhere else.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.errors import StorageError
from pyvz.image.disk import normal_guid
from pyvz.linux import file, increments

SENDING: Final = "overlay.sending"
RECEIVING: Final = "overlay.receiving"
_UPPER: Final = "upper"
_TEMPLATE: Final = re.compile(r"template-([0-9a-z]{1,64})")
_END_TIMEOUT: Final = 600.0  # for tar to end


class Source:
    """Writes an overlay down, round by round: `streams.StreamSource`; a context manager.

    template: its directory, with the `tree` in it.  kept: the snapshots, by their ids.
    """

    def __init__(self, home: Path, template: Path, kept: Sequence[Path]) -> None:
        self._state = home / SENDING
        self._once = [(f"template-{template.name}", template / "tree")]
        self._once += [(each.name, each) for each in kept]
        self._upper = home / "overlay/upper"
        self._writer = increments.Writer(self._state / _UPPER, _UPPER)

    def __enter__(self) -> Source:
        self._writer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def arm(self) -> None:
        """Have tar wait for the next round."""
        self._writer.arm(self._upper)

    def round(self, *, still: bool = False) -> Iterator[AbstractContextManager[int]]:
        """Yield the layers that never change, each once, then the upper one."""
        while self._once:
            yield self._whole(*self._once[0])
            del self._once[0]
        yield self._writer.archive(self._upper, still=still, timeout=_END_TIMEOUT)

    @contextlib.contextmanager
    def _whole(self, name: str, layer: Path) -> Iterator[int]:
        with (
            increments.Writer(self._state / name, name) as writer,
            writer.archive(layer, still=True, timeout=_END_TIMEOUT) as pipe,
        ):
            yield pipe


class Layers(NamedTuple):
    """What has arrived: the name of the template and where each layer is."""

    template: str
    lower: Path
    upper: Path
    kept: tuple[Path, ...]


class Sink:
    """Puts layers together from what a Source says: `streams.StreamSink`."""

    def __init__(self, home: Path) -> None:
        self._folder = home / RECEIVING

    def take(self, feed: Callable[[int], None]) -> None:
        """Let tar apply an archive; raises CommandFailed, NoSpace."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with increments.reading(self._folder) as tar:
            with contextlib.suppress(BrokenPipeError):  # its own words say why
                feed(tar.stdin())
            tar.close()
            tar.ended(_END_TIMEOUT)

    def layers(self) -> Layers:
        """Return what is there now; raises StorageError (not a whole disk), UsageError."""
        found = {entry.name: entry for entry in self._folder.iterdir()}
        if not all(_is_directory(entry) for entry in found.values()):
            raise StorageError("A layer of the disk has come that is no directory")
        upper = found.pop(_UPPER, None)
        names = [match for match in map(_TEMPLATE.fullmatch, found) if match]
        if upper is None or len(names) != 1:
            raise StorageError("The layers that have come are no disk")
        lower = found.pop(names[0][0])
        kept = tuple(found[name] for name in sorted(found) if normal_guid(name) == name)
        if len(kept) != len(found):
            raise StorageError("Layers of the disk have come that nobody knows")
        return Layers(names[0][1], lower, upper, kept)


def _is_directory(path: Path) -> bool:
    """Whether a path is a directory itself, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def forget(home: Path) -> None:
    """Remove what a send left, or was received and has not become a disk.  Idempotent."""
    file.remove_tree(home / SENDING)
    file.remove_tree(home / RECEIVING)
