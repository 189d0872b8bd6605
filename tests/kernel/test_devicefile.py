"""Device files of containers whose root is not the node's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyvz.container.devicefile import DeviceFiles
from pyvz.container.devices import DeviceNode
from pyvz.container.spec import ContainerSpec
from pyvz.model.limits import IdRange, Limits
from pyvz.store.paths import Paths

pytestmark = pytest.mark.requires("root")

NULL = DeviceNode("/dev/null", "c", 1, 3)
MISSING = DeviceNode("/dev/there/is/none", "c", 1, 3, access="rw")


def spec(ids: IdRange | None, *nodes: DeviceNode) -> ContainerSpec:
    return ContainerSpec(
        "u-1", "a", Path("/"), ("/sbin/init",), (), ids, frozenset(), nesting=False,
        limits=Limits(), device_nodes=nodes,
    )  # fmt: skip


def test_files_for_the_root_of_a_container(short_root: Path) -> None:
    files = DeviceFiles(Paths(short_root))
    try:
        made = files.given(spec(IdRange(700000, 65536), NULL, MISSING))
        null, other = made.device_nodes
        assert null == NULL  # open to everybody
        found = os.lstat(other.source)
        assert (found.st_uid, found.st_rdev) == (700000, os.makedev(1, 3))
        assert (stat.S_ISCHR(found.st_mode), stat.S_IMODE(found.st_mode)) == (True, 0o600)
        # Once more, while it runs: the same file.  Of another one it is not.
        assert files.given(made) == made
        assert os.lstat(other.source).st_ino == found.st_ino
        files.given(spec(IdRange(800000, 65536), MISSING))
        assert os.lstat(other.source).st_uid == 800000
    finally:
        files.remove("u-1")
        files.remove("u-1")
    assert not Path(other.source).parents[1].exists()


def test_root_of_the_node_makes_its_own(short_root: Path) -> None:
    plain = spec(None, MISSING)
    assert DeviceFiles(Paths(short_root)).given(plain) == plain
