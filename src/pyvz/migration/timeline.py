"""How long each part of a migration took: a Progress that keeps the time of its stages."""

from __future__ import annotations

import time

from pyvz.model.task import Progress


class Timeline:
    """Passes everything on to another Progress, and remembers when each stage began."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._began: list[tuple[str, float]] = []

    def stage(self, text: str) -> None:
        """Begin a stage; what came before it ends."""
        self._began.append((text, time.monotonic()))
        self._progress.stage(text)

    def advance(self, done: int, total: int | None = None, *, unit: str = "B") -> None:
        """Tell how far the stage is."""
        self._progress.advance(done, total, unit=unit)

    def check(self) -> None:
        """Raise Cancelled when the task was called off."""
        self._progress.check()

    def phases(self) -> tuple[tuple[str, float], ...]:
        """Return every stage with its seconds, in their order; the last one ends now."""
        ends = [began for _, began in self._began[1:]] + [time.monotonic()]
        return tuple(
            (text, round(end - began, 6))
            for (text, began), end in zip(self._began, ends, strict=True)
        )
