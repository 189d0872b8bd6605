"""Changed packet filters are heard of, in a network namespace of its own."""

from __future__ import annotations

import os

import pytest

from dying import in_child
from pyvz.linux import nftables, syscall
from pyvz.linux.nftables import Table
from pyvz.linux.nftevents import Events

pytestmark = pytest.mark.requires("root", "program:nft")


def test_only_news_are_told() -> None:
    def work() -> None:
        syscall.unshare(syscall.CLONE_NEWNET)
        events = Events("pyvz-")
        for batch, news in _batches():
            nftables.apply(batch)
            assert events.drain() == news, batch
            assert not events.drain()
        events.close()
        os._exit(0)

    assert in_child(work) == 0


def _batches() -> list[tuple[list[nftables.Command], bool]]:
    theirs, ours, card = Table("inet", "theirs"), Table("inet", "pyvz-a"), Table("netdev", "x")
    return [
        ([theirs.add()], True),
        ([theirs.chain("f", "forward", 0, policy="drop")], True),
        ([theirs.rule("f", nftables.ACCEPT)], True),
        ([card.add()], False),
        ([ours.add(), ours.set("s", "ipv4_addr")], True),
        (ours.elements("s", ["10.0.0.1"]), False),
        ([ours.add(), ours.chain("f", "forward", 0)], False),
        (ours.drop(), True),
        (card.drop(), False),
        (theirs.drop(), True),
    ]
