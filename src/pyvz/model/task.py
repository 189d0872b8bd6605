"""How an operation tells about its progress, and how it is called off."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Given to every long operation; operations never print."""

    def stage(self, text: str) -> None:
        """Begin a named part of the work ("Unpacking debian-12"); checks for cancellation."""

    def advance(self, done: int, total: int | None = None, *, unit: str = "B") -> None:
        """Tell how far the current part is; `unit` is B (bytes) or a plural noun.

        Raises Cancelled when the task was called off.
        """

    def check(self) -> None:
        """Raise Cancelled when the task was called off."""


class NoProgress:
    """A Progress that nobody watches and nobody cancels."""

    def stage(self, text: str) -> None:
        """Do nothing."""

    def advance(self, done: int, total: int | None = None, *, unit: str = "B") -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""
