"""For all tests: the leak fixture, the `requires` marker and the guard of unit tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from alone import cgroup_top, host_network, userfaultfd_switch
from leaks import leak_guard, session_guard, short_root
from needs import pytest_runtest_setup
from pyvz.linux import run

__all__ = [
    "cgroup_top",
    "host_network",
    "leak_guard",
    "pytest_collection_finish",
    "pytest_configure",
    "pytest_runtest_setup",
    "pytest_sessionfinish",
    "pytest_sessionstart",
    "short_root",
    "unit_guard",
    "userfaultfd_switch",
]

# How long an example takes says nothing on a busy machine.
settings.register_profile(
    "pyvz",
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pyvz")

_LEFT = pytest.StashKey[Callable[[], list[str]]]()


def pytest_configure() -> None:
    """Put back what a shell has us ignore that starts us in the background: programs inherit it."""
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Look at the machine before any worker begins."""
    config = session.config
    if (
        not hasattr(config, "workerinput")
        and config.getoption("numprocesses", None)
        and os.geteuid() == 0
    ):
        config.stash[_LEFT] = session_guard()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the whole run when something is left that no test could be blamed for."""
    left = session.config.stash.get(_LEFT, None)
    if left and (problems := left()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print("\nthe tests left behind:", *problems, sep="\n")


def pytest_collection_finish() -> None:
    """Take what is there now out of garbage collection: the leak guard collects after each test,
    and a pass over seven thousand collected tests takes a quarter of a second.
    """
    gc.collect()
    gc.freeze()


class ProgramInUnitTest(BaseException):
    """A unit test ran a program; not an Exception, so that nobody can swallow it."""


@pytest.fixture(autouse=True)
def unit_guard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every program that a unit test would run through linux/run.py an error."""

    def refuse(argv: object, *_: object, **__: object) -> None:
        raise ProgramInUnitTest(f"a unit test runs {argv}")

    if "unit" in request.node.path.parts:
        monkeypatch.setattr(run, "_start", refuse)
