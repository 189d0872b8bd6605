"""A text that must not appear in any log, message or traceback."""

from __future__ import annotations


class Secret:
    """Holds a password; prints as "Secret(hidden)".  Only `reveal` gives the text away."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text; call it only where it is handed to the program that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(hidden)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce__(self) -> str:
        raise TypeError("a Secret is never written down")
