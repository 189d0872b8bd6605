"""Debian with systemd, PostgreSQL under pgbench and nginx under load goes to and fro, unnoticed.

PYVZ_ROUNDS says how often to and fro (20).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from services import Load, Serving
from twonodes import TwoNodes, busybox_root, busybox_tar, two_nodes

__all__ = ["busybox_root", "busybox_tar", "two_nodes"]

pytestmark = [
    pytest.mark.requires("root", "userns", "sshd", "criu", "program:pgbench"),
    pytest.mark.long,
    pytest.mark.timeout(3 * 3600),
]

ROUNDS = int(os.environ.get("PYVZ_ROUNDS", "20"))
ADDRESS = "10.99.0.60"


@pytest.mark.parametrize(("release", "layout"), [(12, "simfs"), (13, "ploop")])
def test_to_and_fro_under_load(
    two_nodes: TwoNodes, tmp_path: Path, release: int, layout: str
) -> None:
    two_nodes.lan_networks()
    here, there = two_nodes.a, two_nodes.b
    guest = Serving(here, release, ADDRESS)
    guest.create(layout)
    with Load(guest, tmp_path) as load:
        load.flows()
        for number in range(2 * ROUNDS):
            began = time.monotonic()
            out = here.vzmigrate("--online", "--json", there.name, guest.name)
            result = json.loads(out.splitlines()[-1])
            here, there = there, here
            guest.side = here
            load.flows()
            assert (here.state(guest.name), there.state(guest.name)) == ("running", "")
            took = time.monotonic() - began
            print(f"migration {number + 1}: {took:.1f} s, {result}", flush=True)
        done, browsed = load.end()
    assert not browsed.failed, browsed
    assert browsed.requests > 0
    assert guest.whole() == done
    guest.healthy()
    print(f"{done} transactions, {browsed}")
