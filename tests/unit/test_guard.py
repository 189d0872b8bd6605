"""The guard of the unit tests works."""

from __future__ import annotations

import pytest

from pyvz.linux import run, syscall


def test_programs_are_refused() -> None:
    with pytest.raises(BaseException, match="was run in a unit test") as raised:
        run.run(["true"])
    assert not isinstance(raised.value, Exception)


def test_system_calls_are_refused() -> None:
    with pytest.raises(BaseException, match="was called in a unit test") as raised:
        syscall.sethostname("x")
    assert not isinstance(raised.value, Exception)


def test_a_test_may_ask_for_the_kernel(real_kernel: None) -> None:
    assert run.run(["true"]).code == 0
