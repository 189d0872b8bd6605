"""A node that differs from the one where a container runs says so before anything is changed.

Two kernels or CPUs cannot be had on one machine: what the other node tells of itself is made up.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from pyvz.errors import NodesDiffer, ProtocolError
from pyvz.migration.offer import HOME, DiskOffer, Offer
from pyvz.operations import suitable
from pyvz.operations.immigrate import Arriving
from pyvz.operations.node import Node
from worlds import make_node

CRIU = (4, 2, 1)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    program = SimpleNamespace(program=lambda: SimpleNamespace(version=CRIU))
    monkeypatch.setattr(Node, "checkpoint", property(lambda _: program))
    return make_node(tmp_path / "node")


def offer(**changes: object) -> Offer:
    """What a node of the same kind as this one offers, but for the changes."""
    same = Offer(
        uuid=str(uuid4()),
        envid="101",
        name="ct",
        conf='OSTEMPLATE="tiny"\n',
        memory=1 << 20,
        running=True,
        live=True,
        machine=platform.machine(),
        kernel=os.uname().release,
        cpu=suitable.cpu_flags(),
        driver="",
        disks=(DiskOffer("rest", HOME, "", None, 0),),
        place="/vz/private/x",
        token="",
        private=None,
        shared=False,
        ignore=(),
        copy=False,
        checkpoint={"criu": list(CRIU)},
    )
    return same._replace(**cast("Any", changes))


def ask(node: Node, made: Offer) -> dict[str, Any]:
    """Ask as the other node does; what it finds here stays as it is."""
    arriving = Arriving(node, cast("Any", None))
    message = json.loads(json.dumps({"id": str(uuid4()), "offer": made.to_json()}))
    before = sorted(node.paths.root.rglob("*"))
    try:
        return arriving.check(message)
    finally:
        assert sorted(node.paths.root.rglob("*")) == before


def test_the_same_kind_of_node(node: Node) -> None:
    assert ask(node, offer())["shared"] is False


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"machine": "ppc64"}, "ppc64 machine"),
        ({"kernel": "99.1.0-1-amd64"}, "99.1.0"),
        ({"cpu": (*suitable.cpu_flags(), "avx4096")}, "CPU"),
        ({"checkpoint": {"criu": [99, 0, 0]}}, "CRIU"),
    ],
)
def test_what_differs_is_told(node: Node, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(NodesDiffer) as caught:
        ask(node, offer(**changes))
    assert word in caught.value.message
    if "machine" not in changes:  # stopped it can live here
        stopped = offer(**{"live": False, "checkpoint": {}} | {**changes, "checkpoint": {}})
        ask(node, stopped)


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"kernel": "99.1.0"}, "technologies"),
        ({"cpu": ("avx4096",)}, "cpu_check"),
        ({"cpu": ("avx4096",), "kernel": "99.1.0"}, "all"),
    ],
)
def test_checks_can_be_skipped(node: Node, changes: dict[str, Any], check: str) -> None:
    ask(node, offer(ignore=(check,), **changes))


def test_harmless_features_and_older_kernels_do_not_count(node: Node) -> None:
    ask(node, offer(cpu=(*suitable.cpu_flags(), "vmx", "hwp"), kernel="4.19.0", checkpoint={}))


@pytest.mark.parametrize(
    "changes", [{"cpu": "avx"}, {"kernel": 6}, {"checkpoint": None}, {"disks": [1]}, {"uuid": "x"}]
)
def test_an_offer_that_is_none(node: Node, changes: dict[str, Any]) -> None:
    fields = {**offer().to_json(), **changes}
    with pytest.raises(ProtocolError):
        Arriving(node, cast("Any", None)).check({"id": str(uuid4()), "offer": fields})
