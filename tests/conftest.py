"""For all tests: the leak fixture and the `requires` marker (tests/leaks.py, tests/needs.py)."""

from leaks import leak_guard, short_root
from needs import pytest_runtest_setup

__all__ = ["leak_guard", "pytest_runtest_setup", "short_root"]
