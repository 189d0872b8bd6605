"""Keys of encrypted disks: only root's own files count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvz.errors import BadValue, ConfigError, NotFound
from pyvz.model.grammar_machine import Drives
from pyvz.store import diskkeys
from pyvz.store.paths import Paths

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a key belongs to root")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "etc/vz/keys/web"
    path.parent.mkdir(parents=True)
    path.write_text("secret\n")
    path.chmod(0o600)
    return path


def test_a_key(tmp_path: Path, key: Path) -> None:
    assert diskkeys.read(Paths(tmp_path), "web").reveal() == "secret"
    key.write_bytes(b"caf\xe9")
    assert diskkeys.read(Paths(tmp_path), "web").reveal().encode("utf-8", "surrogateescape") == (
        b"caf\xe9"
    )


def test_refused(tmp_path: Path, key: Path) -> None:
    paths = Paths(tmp_path)
    with pytest.raises(NotFound, match="no key 'none'"):
        diskkeys.read(paths, "none")
    (key.parent / "link").symlink_to(key)
    with pytest.raises(NotFound):
        diskkeys.read(paths, "link")
    for content in (b"", b"\n", b"a\0b", b"x" * 5000):
        key.write_bytes(content)
        with pytest.raises(ConfigError, match="no passphrase"):
            diskkeys.read(paths, "web")
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="only root"):
        diskkeys.read(paths, "web")


@pytest.mark.parametrize("name", ["../web", "a/b", ".web", "-x y", "k" * 65])
def test_names_of_keys(name: str) -> None:
    with pytest.raises(BadValue):
        Drives().parse(f"name=hdd0,keyid={name},image=x")
