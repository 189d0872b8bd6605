"""Dumps of a container that is doing, for a moment, what cannot be dumped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from pyvz.errors import NotNow

log = logging.getLogger(__name__)

_ATTEMPTS: Final = 8
_BREATH: Final = 0.2  # seconds between two


def until_done(name: str, dump: Callable[[], None], between: Callable[[], None]) -> None:
    """Dump the container NAME, again when the moment was wrong (NotNow) and it goes on.

    between: is done before each new attempt, and may raise.  Raises what `dump` raises; NotNow when
    no moment was right.
    """
    for left in reversed(range(_ATTEMPTS)):
        try:
            dump()
        except NotNow as error:
            if not left:
                raise
            log.info("%s: once more: %s", name, error)
            between()
            time.sleep(_BREATH)
        else:
            return
