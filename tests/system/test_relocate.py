"""Clone, and move between file systems, with the real driver and real mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import faults
from pyvz.errors import NoSpace, VZError
from pyvz.linux import mount
from pyvz.model.conffile import ConfFile
from pyvz.model.status import Status
from pyvz.operations import actionscript, clone, leftovers, provision, relocate
from pyvz.operations.node import Node
from pyvz.operations.provision import CreateRequest
from pyvz.storage import base
from worlds import make_archive, make_node

NETIF = "ifname=eth0,mac=00:18:51:aa:bb:cc,host_mac=fe:18:51:aa:bb:cc,host_ifname=veth51aabbcc"


@pytest.fixture
def node(short_root: Path) -> Node:
    root = short_root / "n"
    root.mkdir()
    made = make_node(root)
    (made.paths.template / "cache").mkdir(parents=True)
    archive = make_archive(short_root)
    archive.rename(made.paths.template / "cache" / archive.name)
    provision.create(made, CreateRequest(name="ct1", ostemplate="tiny-1"))
    return made


def test_clone_is_another_one(node: Node) -> None:
    source = node.registry.resolve("ct1")
    conf = node.registry.conf_file(source)
    conf.set("NETIF", NETIF)
    node.registry.save(source, conf)
    keys = source.home / "fs/etc/ssh"
    (keys / "ssh_host_ed25519_key").write_text("old")
    (keys / "ssh_host_ed25519_key").chmod(0o600)
    before = faults.world(source.home)
    copy = clone.clone(node, "ct1", "ct2")
    assert faults.difference(faults.world(source.home), before) == []
    assert node.status(copy) == Status.STOPPED
    assert not (node.paths.ve_root / copy.uuid).is_mount()
    new = ConfFile.parse((copy.home / "ve.conf").read_text())
    assert (new.get("NAME"), new.get("UUID")) == ("ct2", copy.uuid)
    assert "00:18:51:aa:bb:cc" not in (new.get("NETIF") or "")
    assert "mac=c4:37:72:" in (new.get("NETIF") or "")
    fs = copy.home / "fs"
    assert (fs / "etc/hostname").read_text() == "tiny\n"
    assert (fs / "etc/machine-id").read_text() == ""
    key = fs / "etc/ssh/ssh_host_ed25519_key"
    assert "PRIVATE KEY" in key.read_text()
    assert key.stat().st_mode & 0o777 == 0o600
    provision.delete(node, "ct2")
    assert (source.home / "fs/etc/hostname").exists()


def test_failure_of_a_clone_leaves_nothing(node: Node) -> None:
    before = faults.world(node.paths.root, without=("vz/lock", "var"))
    for number in range(3, 60, 6):
        with faults.at_step(number, faults.fail, node.paths.root):
            try:
                clone.clone(node, "ct1", "ct2")
            except (VZError, OSError):
                pass
            else:
                break
        leftovers.repair_all(node)
        now = faults.world(node.paths.root, without=("vz/lock", "var"))
        left = [line for line in faults.difference(now, before) if ".tmp: None" not in line]
        assert left == [], f"step {number}"


@pytest.mark.parametrize("size", ["64m", "8k"])
def test_move_to_another_file_system(node: Node, size: str) -> None:
    other = node.paths.root / "other"
    other.mkdir()
    mount.mount("tmpfs", other, "tmpfs", data=f"size={size}")
    try:
        old = node.registry.resolve("ct1")
        (old.home / "scripts/mount").write_text("#!/bin/sh\n")
        before = faults.world(old.home)
        if size == "8k":
            with pytest.raises((NoSpace, VZError)):
                relocate.move(node, "ct1", "/other")
            assert list(other.iterdir()) == []
            assert faults.difference(faults.world(old.home), before) == []
            assert node.registry.resolve("ct1") == old
            return
        new = relocate.move(node, "ct1", "/other")
        assert not old.home.exists()
        after = faults.difference(faults.world(new.home), before)
        assert [line.split(":")[0] for line in after] == ["ve.conf"]
        assert node.registry.resolve("ct1").home == new.home
        relocate.move(node, "ct1", "/vz/private")
        assert list(other.iterdir()) == []
    finally:
        mount.umount(other)


def test_scripts_run_for_real(node: Node) -> None:
    env = node.registry.resolve("ct1")
    said = node.paths.root / "said"
    script = env.home / "scripts/mount"
    script.write_text(f'#!/bin/sh\n. "$VE_CONFFILE"\necho "$VEID $NAME $VE_PRIVATE" >{said}\n')
    script.chmod(0o755)
    driver, root = base.find(env.home), node.root(env)
    driver.mount(env.home, root)
    try:
        actionscript.run(node, env, "mount")
        assert node.status(env) == Status.MOUNTED
    finally:
        driver.umount(env.home, root)
    assert said.read_text() == f"{env.uuid} ct1 /vz/private/{env.uuid}\n"
    assert os.fspath(root).endswith(env.uuid)
