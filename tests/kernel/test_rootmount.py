"""MOUNT_OPTS, NOATIME, DISKINODES and QUOTAUGIDLIMIT on a root disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from homes import request
from ploops import mounted, ploop_node, ploop_request, write
from pyvz.errors import BadValue, MountError, Unsupported
from pyvz.linux import filesystem, mount, userquota
from pyvz.operations import configure, provision
from pyvz.operations.configure import SetRequest
from pyvz.operations.node import Node
from pyvz.storage import newfilesystem, ploop

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with ploop_node(tmp_path) as made:
        yield made


def set_(node: Node, name: str, value: str, ref: str = "ct1") -> None:
    configure.set_options(node, ref, SetRequest("vzctl", ((name, value),)))


def options_of(node: Node, ref: str = "ct1") -> tuple[str, ...]:
    with mounted(node, ref) as root:
        entry = mount.mount_at(root)
        assert entry is not None
        return (*entry.options, *entry.super_options)


def test_mount_options(node: Node) -> None:
    set_(node, "noatime", "yes")
    set_(node, "mount_opts", "nosuid,swalloc")
    assert {"noatime", "nosuid", "nodev"} <= set(options_of(node))
    provision.create(node, request(name="plain", uuid=None, layout="simfs"))
    set_(node, "mount_opts", "noexec,data=journal", "plain")
    assert "noexec" in options_of(node, "plain")


def test_an_option_that_there_is_not(node: Node) -> None:
    set_(node, "mount_opts", "nonsense=1")
    with pytest.raises(MountError), mounted(node):
        pass
    set_(node, "mount_opts", "noatime")
    write(node, "goes on")


def test_inodes_of_xfs(node: Node) -> None:
    if newfilesystem.default() != "xfs":
        pytest.skip("new disks are ext4 here")
    for ref in ("ct1",):
        with mounted(node, ref) as root:
            before = os.statvfs(root).f_files
            set_(node, "diskinodes", "20000:20000")
            assert 20000 <= os.statvfs(root).f_files < 32000
            assert os.statvfs(root).f_files < before
        set_(node, "diskinodes", "60000")
        with mounted(node, ref) as root:
            assert 60000 <= os.statvfs(root).f_files < 75000
            set_(node, "diskinodes", "unlimited")
            assert os.statvfs(root).f_files >= before


def test_inodes_of_ext4(node: Node) -> None:
    options = (("diskspace", "64M"), ("diskinodes", "9000"))
    made = ploop_request(name="ct2", uuid=None, options=options, dialect="vzctl")
    provision.create(node, made)
    with mounted(node, "ct2") as root:
        assert filesystem.kind_at(Path("/dev") / device_of(root)) == "ext4"
        assert 9000 <= os.statvfs(root).f_files < 9500
        now = os.statvfs(root).f_files
    set_(node, "diskinodes", str(now), "ct2")
    with pytest.raises(Unsupported, match=str(now)):
        set_(node, "diskinodes", "100", "ct2")
    provision.create(node, request(name="plain", uuid=None, layout="simfs"))
    with pytest.raises(Unsupported):
        set_(node, "diskinodes", "100", "plain")
    with pytest.raises(Unsupported):
        provision.create(
            node,
            request(name="b", uuid=None, layout="simfs", options=options[1:], dialect="vzctl"),
        )


def test_without_a_limit(node: Node) -> None:
    """An image has a size always, and a directory none; inodes without a limit are no wish."""
    for name, layout, size in (("i", "ploop", "64M"), ("d", "simfs", "unlimited")):
        options = (("diskinodes", "unlimited"), ("diskspace", size))
        provision.create(
            node, request(name=name, uuid=None, layout=layout, options=options, dialect="vzctl")
        )
    set_(node, "diskinodes", "unlimited", "d")
    set_(node, "diskspace", "unlimited", "d")
    before = node.registry.config(node.registry.resolve("i")).disk.space
    with pytest.raises(Unsupported, match="without a size"):
        set_(node, "diskspace", "unlimited", "i")
    assert node.registry.config(node.registry.resolve("i")).disk.space == before


def device_of(root: Path) -> str:
    entry = mount.mount_at(root)
    assert entry is not None
    return entry.source.removeprefix("/dev/")


def test_quota_of_users(node: Node) -> None:
    env = node.registry.resolve("ct1")
    kind = ploop.Driver().fstype(env.home)
    if why := userquota.missing(kind):
        with pytest.raises(Unsupported, match=r"no quota"):
            set_(node, "quotaugidlimit", "100")
        assert "QUOTAUGIDLIMIT" not in (env.home / "ve.conf").read_text()
        # From another node: the container is mounted without.
        conf = node.registry.conf_file(env)
        conf.set("QUOTAUGIDLIMIT", "100")
        node.registry.save(env, conf)
        write(node, why)
        return
    set_(node, "quotaugidlimit", "100")
    assert {"usrquota", "grpquota"} <= set(options_of(node))
    set_(node, "quotaugidlimit", "0")
    assert "usrquota" not in options_of(node)


def test_quota_needs_a_file_system(node: Node) -> None:
    provision.create(node, request(name="plain", uuid=None, layout="simfs"))
    with pytest.raises(Unsupported, match="file system of its own"):
        set_(node, "quotaugidlimit", "100", "plain")
    with pytest.raises(BadValue):
        set_(node, "quotaugidlimit", "many")


def test_the_probe_leaves_nothing() -> None:
    for kind in filesystem.TYPES:
        assert isinstance(userquota.missing(kind), str)
