"""Debian with systemd, PostgreSQL under pgbench and nginx under load goes to and fro, unnoticed.

PYVZ_ROUNDS says how often to and fro (20).
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from networld import end
from services import Load, Serving
from twonodes import Side, TwoNodes, busybox_root, busybox_tar, two_nodes, wait_for

__all__ = ["busybox_root", "busybox_tar", "two_nodes"]

pytestmark = [
    pytest.mark.requires("root", "userns", "sshd", "criu", "program:pgbench"),
    pytest.mark.long,
    pytest.mark.timeout(3 * 3600),
]

SUSPENDS = 3
ROUNDS = int(os.environ.get("PYVZ_ROUNDS", "20"))
ADDRESS = "10.99.0.60"
MEMORY = ("--memsize", "512M")  # of PostgreSQL, nginx and systemd: a fifth of it is used


@pytest.mark.parametrize(("release", "layout"), [(12, "simfs"), (13, "ploop")])
def test_to_and_fro_under_load(
    two_nodes: TwoNodes, tmp_path: Path, release: int, layout: str
) -> None:
    two_nodes.lan_networks()
    here, there = two_nodes.a, two_nodes.b
    guest = Serving(here, release, ADDRESS)
    guest.create(layout, *MEMORY)
    with Load(guest, tmp_path) as load:
        load.flows()
        for number in range(2 * ROUNDS):
            began = time.monotonic()
            result = guest.migrate(there)
            assert result["problem"] == "", result
            here, there = there, here
            guest.side = here
            load.flows()
            guest.inside("systemd-run --wait --quiet /bin/true")
            assert (here.state(guest.name), there.state(guest.name)) == ("running", "")
            took = time.monotonic() - began
            print(f"migration {number + 1}: {took:.1f} s, {result}", flush=True)
        done, browsed = load.end()
    assert not browsed.failed, browsed
    assert browsed.requests > 0
    assert guest.whole() == done
    guest.healthy()
    print(f"{done} transactions, {browsed}")


@pytest.mark.parametrize(("release", "layout"), [(12, "ploop"), (13, "simfs")])
def test_suspended_over_restarts_under_load(
    two_nodes: TwoNodes, tmp_path: Path, release: int, layout: str
) -> None:
    """The clients' connections outlive it: nobody answers in between, so nobody resets them."""
    two_nodes.lan_networks()
    side = two_nodes.a
    guest = Serving(side, release, ADDRESS)
    guest.create(layout, *MEMORY)
    with Load(guest, tmp_path) as load:
        load.flows()
        for _ in range(SUSPENDS):
            side.prlctl("suspend", guest.name)
            assert side.state(guest.name) == "suspended"
            restart(side)
            assert side.state(guest.name) == "suspended"
            side.prlctl("resume", guest.name)
            load.flows()
            guest.ready()
            guest.inside("systemd-run --wait --quiet /bin/true")
        done, browsed = load.end()
    assert not browsed.failed, browsed
    assert guest.whole() == done
    guest.healthy()


def restart(side: Side) -> None:
    """End the daemons; what is left of them below /run goes, as in a reboot."""
    keeper = side.keeper()
    end(side.vzd(), signal.SIGTERM)
    end(keeper, signal.SIGKILL)
    shutil.rmtree(side.root / "run/pyvz/state", ignore_errors=True)


@pytest.mark.parametrize("release", [12, 13])
def test_snapshot_with_memory_of_a_database(two_nodes: TwoNodes, release: int) -> None:
    """Back to a moment in the middle of transactions, which then go on."""
    two_nodes.lan_networks()
    side = two_nodes.a
    guest = Serving(side, release, ADDRESS)
    guest.create("ploop", *MEMORY)
    guest.inside("systemd-run --unit=bench su postgres -c 'cd /; pgbench -n -c 2 -T 86400 bench'")
    wait_for(lambda: guest.whole() > 100)
    before = guest.whole()
    side.prlctl("snapshot", guest.name)
    ident = side.cli("vzctl", "snapshot-list", guest.name, "-H", "-o", "uuid").split()[0]
    after = guest.whole()
    assert after >= before
    for _ in range(2):
        wait_for(lambda: guest.whole() > after + 100)
        guest.postgres("psql -qc 'create table later ()' bench")
        side.prlctl("stop", guest.name, "--kill")
        side.cli("vzctl", "snapshot-switch", guest.name, "--id", ident)
        guest.healthy()
        assert guest.inside("systemctl is-active bench").strip() == "active"
        assert "later" not in guest.postgres("psql -c '\\d' bench")
        now = guest.whole()
        wait_for(lambda now=now: guest.whole() > now)
