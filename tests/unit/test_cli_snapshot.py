"""How prlctl and vzctl print snapshots: the shapes of PrlSnapshot.cpp and snapshot-list.c."""

from __future__ import annotations

from typing import Any

import pytest

from pyvz.cli import prlctl_snapshot, vzctl_snapshot
from pyvz.errors import BadValue


def row(name: str, parent: str = "", *, current: bool = False) -> dict[str, Any]:
    return {
        "id": name,
        "parent": parent,
        "current": current,
        "name": f"name of {name}",
        "date": "2026-01-02 03:04:05",
        "description": "d",
        "state": "poweroff",
        "device": "",
        "target": "",
    }


def test_the_tree_of_prlctl() -> None:
    rows = [row("A"), row("B", "A"), row("C", "B"), row("D", "A", current=True), row("E")]
    assert prlctl_snapshot.tree(rows) == "_A_B_C\n| \\*D\n_E\n"
    assert prlctl_snapshot.tree([*rows[:3], row("D", "B")]) == "_A_B_C\n   \\_D\n"
    assert prlctl_snapshot.tree([]) == ""


def test_the_list_of_prlctl_goes_depth_first() -> None:
    rows = [row("A"), row("E"), row("B", "A", current=True), row("C", "B")]
    text = prlctl_snapshot.table(rows, header=True)
    assert text.splitlines()[0] == "PARENT_SNAPSHOT_ID                      SNAPSHOT_ID"
    assert text.splitlines()[2] == f"{'A':>38} *{'B':>38}"
    assert [line.split()[-1].lstrip("*") for line in text.splitlines()[1:]] == list("ABCE")
    assert prlctl_snapshot.table([], header=False) == ""


def test_the_list_of_vzctl() -> None:
    rows = [row("A"), row("B", "A", current=True)]
    names = ["parent_uuid", "current", "uuid", "date", "name"]
    assert vzctl_snapshot.table(rows, names, header=True) == (
        f"{'PARENT_UUID':<38} C {'UUID':<38} {'DATE':<19} {'NAME':<32}\n"
        f"{'':<38}   {'A':<38} 2026-01-02 03:04:05 name of A\n"
        f"{'A':<38} * {'B':<38} 2026-01-02 03:04:05 name of B\n"
    )


@pytest.mark.parametrize("bad", ["", "x", "{1-2}", "00000000-1111-4222-8333-44444444444g"])
def test_ids_are_checked(bad: str) -> None:
    with pytest.raises(BadValue):
        vzctl_snapshot._braced(bad)


def test_new_ids_are_random_uuids() -> None:
    one, other = vzctl_snapshot._new_id(), vzctl_snapshot._new_id()
    assert one != other
    assert one[14] == "4"
    assert vzctl_snapshot._braced(one) == f"{{{one}}}"
