"""A machine with Debian's kernel, systemd as PID 1 and cgroup v2 only: pyvz's life cycle in it.

It is booted once; every step of guest.py is a test of its own.
"""

from __future__ import annotations

from pathlib import Path

import guest
import image
import outer
import pytest

pytestmark = [pytest.mark.machine, pytest.mark.timeout(outer.DEADLINE + 600)]

BOARD = ("-machine", "q35", "-cpu", "max", "-m", "2048")


@pytest.fixture(scope="module", params=outer.SUITES)
def answers(request: pytest.FixtureRequest, debian_tar: Path) -> outer.Answers:
    """What the machine said, by step."""
    cache = {"debian-12-x86_64.plain.tar.zst": debian_tar}
    return outer.answers(image.base_image(request.param), cache, "cgroups", BOARD)


@pytest.mark.parametrize("step", [function.__name__ for function in guest.KINDS["cgroups"]])
def test_step(answers: outer.Answers, step: str) -> None:
    outer.check(answers, step)
