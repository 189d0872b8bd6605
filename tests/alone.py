"""What there is once on the machine, for one test at a time, whichever worker runs it.

A test that needs one asks by `@pytest.mark.usefixtures(...)`, so that it is let go last.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Wait until nobody else has it, and have it for a while."""
    with Path(f"/tmp/pyvz-tests-{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def host_network() -> Iterator[None]:
    """The network namespace that the tests run in: names of bridges, Host-Only's addresses."""
    with alone("network"):
        yield


@pytest.fixture
def userfaultfd_switch() -> Iterator[None]:
    """vm.unprivileged_userfaultfd."""
    with alone("userfaultfd"):
        yield


@pytest.fixture
def cgroup_top() -> Iterator[None]:
    """The controllers of the root of the cgroup2 tree."""
    with alone("cgroup"):
        yield
