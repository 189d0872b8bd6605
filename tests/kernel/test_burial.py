"""Homes that are removed while nobody waits, also when vzd dies in between."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pyvz.operations import burial


def full(path: Path) -> Path:
    (path / "fs/root/etc").mkdir(parents=True)
    (path / "fs/root/etc/hostname").write_text("it")
    return path


def diggers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("bury")]


def test_a_home_is_gone_at_once_and_removed_beside(tmp_path: Path) -> None:
    node: Any = SimpleNamespace(paths=SimpleNamespace(lib=tmp_path / "lib"))
    burial.bury(node, tmp_path / "private/nothing")
    home = full(tmp_path / "private/web.migrated")
    burial.bury(node, home)
    assert not home.exists()
    full(home)  # its name is free at once
    for thread in diggers():
        thread.join(200)
    assert [each.name for each in (tmp_path / "private").iterdir()] == ["web.migrated"]
    assert list((tmp_path / "lib/graves").iterdir()) == []


def test_what_a_death_has_left_is_removed_later(tmp_path: Path) -> None:
    node: Any = SimpleNamespace(paths=SimpleNamespace(lib=tmp_path / "lib"))
    burial.resume(node)  # there never was one
    graves = tmp_path / "lib/graves"
    graves.mkdir(parents=True)
    half = full(tmp_path / "private/.gone-1")
    (graves / ".gone-1").symlink_to(half)
    (graves / ".gone-2").symlink_to(tmp_path / "private/.gone-2")  # died before the rename
    burial.resume(node)
    for thread in diggers():
        thread.join(200)
    assert not half.exists()
    assert list(graves.iterdir()) == []
