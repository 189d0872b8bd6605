"""A tree of files on its way between two nodes: round by round, and nothing beside it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyvz.migration import tree, wire
from pyvz.model.task import NoProgress

pytestmark = pytest.mark.requires("root")


@pytest.fixture
def pair() -> Iterator[tuple[wire.Wire, wire.Wire]]:
    with ExitStack() as stack:
        made = [wire.Wire(end, end, silence=60.0) for end in (e.detach() for e in wire.pair())]
        one, other = (stack.enter_context(each) for each in made)
        yield one, other


def test_what_changes_between_two_rounds_follows(
    pair: tuple[wire.Wire, wire.Wire], tmp_path: Path
) -> None:
    """Also what looks as before, and what is gone; the list of an earlier death is none of it."""
    here, there, state = (tmp_path / name for name in ("here", "there", "state"))
    (here / "etc").mkdir(parents=True)
    there.mkdir()
    for name in ("kept", "etc/changed", "etc/gone"):
        (here / name).write_text("one")
    (here / "link").symlink_to("/etc/kept")
    state.mkdir()
    (state / "seen").write_text("of one that was killed")
    rounds: list[int] = []
    taker = threading.Thread(
        target=lambda: rounds.extend(tree.receive(pair[1].channel(1), there, 120.0))
    )
    taker.start()
    with tree.Sender(pair[0].channel(1), state) as sender:
        sender.send(here, NoProgress(), still=False)
        before = (here / "etc/changed").stat()
        (here / "etc/changed").write_text("two")  # as long, and by its times as old
        os.utime(here / "etc/changed", ns=(before.st_atime_ns, before.st_mtime_ns))
        (here / "etc/gone").unlink()
        sender.send(here, NoProgress(), still=True)
        sender.finish()
    taker.join()
    assert rounds == [0, 1]
    assert (there / "kept").read_text() == "one"
    assert (there / "etc/changed").read_text() == "two"
    assert [path.name for path in (there / "etc").iterdir()] == ["changed"]
    assert (there / "link").readlink() == Path("/etc/kept")
    assert not state.exists()
