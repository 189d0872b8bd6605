"""How fast a stage of a long call goes, and how long it will take: for progress as JSON."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_MEMORY = 5.0  # seconds over which the rate is measured


class Rate:
    """Adds `rate` (per second) and `left` (seconds) to progress messages; null: not known yet."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage = ""
        self._seen: list[tuple[float, int]] = []

    def told(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return a message with what is known of its speed."""
        done, total = message.get("done"), message.get("total")
        rate = self._measured(str(message.get("stage") or ""), done)
        left = round((total - done) / rate, 1) if rate and total is not None else None
        return {**message, "rate": None if rate is None else round(rate), "left": left}

    def _measured(self, stage: str, done: int | None) -> float | None:
        if stage != self._stage or done is None:
            self._stage, self._seen = stage, []
        if done is None:
            return None
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _MEMORY:
            del self._seen[0]
        began, first = self._seen[0]
        return (done - first) / (now - began) if now > began else None
