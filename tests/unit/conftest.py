"""Unit tests: no program, no system call that changes anything; nodes below a temporary root."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from pyvz.linux import run, syscall
from pyvz.store.paths import Paths


class TouchedTheKernel(BaseException):
    """A unit test ran a program or made a system call; not an Exception, so nobody swallows it."""


class _NoLibrary:
    def __getattr__(self, name: str) -> NoReturn:
        raise TouchedTheKernel(f"{name} was called in a unit test")


@pytest.fixture
def real_kernel() -> None:
    """Ask for this to lift the guard (a test that needs openat2 below its own directory)."""


@pytest.fixture(autouse=True)
def unit_guard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every use of linux.run and linux.syscall fail the test."""
    if "real_kernel" in request.fixturenames:
        return

    def refuse(argv: object, *_args: object, **_options: object) -> NoReturn:
        raise TouchedTheKernel(f"{argv} was run in a unit test")

    monkeypatch.setattr(run, "_start", refuse)
    monkeypatch.setattr(syscall, "_libc", _NoLibrary())


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """Return the places of a node below a temporary root."""
    return Paths(tmp_path)
