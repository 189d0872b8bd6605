"""The scroll-back and the log of a console."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pyvz.container import console
from pyvz.container.console import Log, Ring


@given(st.lists(st.binary(max_size=40), max_size=60))
def test_ring_holds_the_end(parts: list[bytes]) -> None:
    ring = Ring(64)
    for part in parts:
        ring.append(part)
    assert ring.content() == b"".join(parts)[-64:]


def test_log_is_put_aside(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(console, "_LOG_LIMIT", 10)
    log = Log(str(tmp_path / "log"))
    log.write(b"0123456789abc")
    log.write(b"new")
    log.close()
    assert (tmp_path / "log.1").read_bytes() == b"0123456789abc"
    assert (tmp_path / "log").read_bytes() == b"new"


def test_log_follows_no_link_and_never_fails(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    log = Log(str(tmp_path / "log"))
    log.write(b"x")
    log.close()
    assert not (tmp_path / "elsewhere").exists()
