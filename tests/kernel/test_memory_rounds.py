"""Rounds of memory on their way between two nodes: one directory each, the newest last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvz.errors import ProtocolError
from pyvz.migration import files, wire
from pyvz.model.task import NoProgress
from pyvz.operations.memoryrounds import Rounds


@pytest.fixture
def pair() -> Iterator[tuple[wire.Wire, wire.Wire]]:
    with ExitStack() as stack:
        made = [wire.Wire(end, end, silence=120.0) for end in (e.detach() for e in wire.pair())]
        one, other = (stack.enter_context(each) for each in made)
        yield one, other


@pytest.fixture
def rounds(tmp_path: Path) -> Iterator[Rounds]:
    node: Any = SimpleNamespace(paths=SimpleNamespace(run=tmp_path / "run"))
    env: Any = SimpleNamespace(uuid="5f1c", home=tmp_path / "home")
    (tmp_path / "run").mkdir()
    made = Rounds(node, env, 1 << 20)
    yield made
    made.cancel()
    assert not made.images.exists()


def test_each_round_finds_its_parent(
    pair: tuple[wire.Wire, wire.Wire], rounds: Rounds, tmp_path: Path
) -> None:
    contents = [os.urandom(3 << 20), os.urandom(5000), b""]
    for number, content in enumerate(contents, 1):
        rounds.begin(number, pair[1].channel(number))
        sent = tmp_path / str(number)
        sent.mkdir()
        (sent / "pages-1.img").touch()  # what was handed on already, emptied
        sender = files.Sender(pair[0].channel(number), NoProgress(), 0)
        for at in range(0, len(content), files.SIZE):
            sender.piece("pages-1.img", at, content[at : at + files.SIZE])
        sender.rest(sent)
    images = rounds.end()
    for content in reversed(contents):
        images = images / "parent"
        assert (images / "pages-1.img").read_bytes() == content
    assert not (images / "parent").exists()


def test_rounds_come_in_their_order(pair: tuple[wire.Wire, wire.Wire], rounds: Rounds) -> None:
    with pytest.raises(ProtocolError, match="counts its rounds"):
        rounds.begin(2, pair[1].channel(1))


def test_what_breaks_in_a_round_is_told(pair: tuple[wire.Wire, wire.Wire], rounds: Rounds) -> None:
    rounds.begin(1, pair[1].channel(1))
    pair[0].channel(1).write(b"\x07nonsense")
    with pytest.raises(ProtocolError, match="record of kind 7"):
        rounds.end()
