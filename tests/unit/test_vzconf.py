"""vz.conf: typed, with defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvz.errors import BadValue, ConfigError
from pyvz.model.config import Config
from pyvz.model.vzconf import NodeConfig, expand_veid, under
from pyvz.store.defaults import seed
from pyvz.store.nodeconf import lock_directory, node_config
from pyvz.store.paths import Paths
from pyvz.store.registry import Registry


def test_defaults() -> None:
    config = NodeConfig.parse({})
    assert config == NodeConfig()
    assert (config.lockdir, config.ve_root) == ("/vz/lock", "/vz/root/$VEID")


def test_values() -> None:
    config = NodeConfig.parse({"VE_PARALLEL": "3", "IPV6": "no", "FOREIGN": "x"})
    assert (config.ve_parallel, config.ipv6, config.values["FOREIGN"]) == (3, False, "x")
    with pytest.raises(ConfigError, match=r"vz\.conf: VE_PARALLEL"):
        NodeConfig.parse({"VE_PARALLEL": "all"})


def test_expansion() -> None:
    assert expand_veid("/a/$VEID/${VEID}/$VEIDX", "7") == "/a/7/7/$VEIDX"
    assert under(Path("/r"), "/vz/x") == Path("/r/vz/x")
    assert under(Path("/r"), "/r/vz/x") == Path("/r/vz/x")
    assert under(Path("/"), "/vz/x") == Path("/vz/x")
    for bad in ("vz", "/a/../b", ""):
        with pytest.raises(BadValue):
            under(Path("/r"), bad)


def test_reading_from_disk(paths: Paths) -> None:
    assert node_config(paths) == NodeConfig()
    paths.etc.mkdir(parents=True)
    paths.vz_conf.write_text('LOCKDIR="/elsewhere"\n')
    assert lock_directory(paths) == paths.root / "elsewhere"
    paths.vz_conf.write_text('LOCKDIR="/there/again"\n')
    assert lock_directory(paths) == paths.root / "there/again"
    paths.vz_conf.write_text("IPV6=perhaps\n")
    with pytest.raises(ConfigError, match="IPV6"):
        node_config(paths)


def test_shipped_files(paths: Paths) -> None:
    written = seed(paths)
    assert paths.vz_conf in written
    assert seed(paths) == []
    registry = Registry(paths)
    assert registry.node_config().configfile == "basic"
    assert {"basic", "light", "vswap.256MB", "vswap.2048MB"} <= set(registry.samples())
    for name in registry.samples():
        conf = registry.sample(name)
        config = Config.parse(conf.values(), name)
        assert not conf.problems()
        assert not config.unknown
        assert config.text() == conf.values()
    assert (paths.conf / "networks_classes").read_text().count("\n1 ") == 2
