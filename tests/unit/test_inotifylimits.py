"""The node's limits of inotify: raised, never lowered, and no reason to fail."""

from __future__ import annotations

from pathlib import Path

from pyvz.linux.inotifylimits import ENOUGH, widen


def test_only_up(tmp_path: Path) -> None:
    (tmp_path / "max_user_instances").write_text("128\n")
    (tmp_path / "max_user_watches").write_text("99999999\n")
    widen(tmp_path)
    assert int((tmp_path / "max_user_instances").read_text()) == ENOUGH["max_user_instances"]
    assert (tmp_path / "max_user_watches").read_text() == "99999999\n"


def test_a_kernel_without_them_is_fine(tmp_path: Path) -> None:
    widen(tmp_path)
    assert not list(tmp_path.iterdir())
