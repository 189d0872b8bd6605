"""Cgroups that CRIU has made for a container that came from another node: whose they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvz.linux import cgroup_inner

pytestmark = [
    pytest.mark.requires("root", "cgroup2"),
    pytest.mark.usefixtures("cgroup_top"),
]

BEFORE, COUNT, HERE = 0x70000000, 65536, 0x70550000
SERVICE, SESSION = "system.slice/x.service", "user.slice/user@1000.service"


@pytest.fixture
def top() -> Iterator[Path]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounted = next(line.split()[4] for line in lines if " - cgroup2 " in line)
    made = Path(mounted) / f"pyvz-test-inner-{os.getpid()}"
    for path in (made, *(made / each for each in (SERVICE, SESSION))):
        path.mkdir(parents=True)
    yield made
    for each in (SERVICE, SESSION):
        (made / each).rmdir()
        (made / each).parent.rmdir()
    made.rmdir()


def test_they_get_the_ids_of_this_node(top: Path) -> None:
    """As CRIU leaves it: the directories as on the other node, the files with the node's root."""
    os.chown(top, BEFORE, BEFORE)
    for path in ("system.slice", SERVICE, "user.slice"):
        os.chown(top / path, BEFORE, BEFORE)
    os.chown(top / SESSION, BEFORE + 1000, BEFORE + 1000)
    for _ in range(2):  # again is fine
        cgroup_inner.own(os.fspath(top), (BEFORE, COUNT), HERE)
        assert owner(top / SERVICE) == HERE
        assert owner(top / SERVICE / "cgroup.procs") == HERE
        assert owner(top / SERVICE / "cgroup.events") == HERE
        # what was delegated to a user inside is the user's, limits stay root's
        assert owner(top / SESSION) == HERE + 1000
        assert owner(top / SESSION / "cgroup.procs") == HERE + 1000
        assert owner(top / SESSION / "cgroup.max.depth") == HERE
    assert owner(top / "cgroup.procs") == 0


def test_controllers_are_enabled_from_the_top_down(top: Path) -> None:
    """As far as this kernel has controllers in its cgroup2 tree; what it has not is named."""
    there = (top / "cgroup.controllers").read_text().split()
    wanted = " ".join(["nosuch", *there[:1]])
    control = "cgroup.subtree_control"
    saved = {"": {control: wanted}, "system.slice": {control: wanted}, "gone": {control: wanted}}
    refused = cgroup_inner.enable(os.fspath(top), saved)
    assert refused == [f"/{control}: nosuch", f"system.slice/{control}: nosuch"]
    for path in ("", "system.slice"):
        assert (top / path / control).read_text().split() == there[:1]
    if there:
        kept = cgroup_inner.save(os.fspath(top))
        assert {path: kept[path][control].split() for path in ("", "system.slice")} == {
            "": there[:1],
            "system.slice": there[:1],
        }


def owner(path: Path) -> int:
    return path.stat().st_uid
