"""What a check of an image found."""

from __future__ import annotations

from typing import NamedTuple


class Report(NamedTuple):
    """The result of a check.

    errors: what makes (part of) the disk unreadable or wrong.  leaks: what only wastes space.
    repaired: what was put right, in words; those things are in no other list.
    in_use: the image was open, or not closed cleanly, when the check began.
    """

    errors: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    in_use: bool = False

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong (any more)."""
        return not self.errors and not self.leaks
