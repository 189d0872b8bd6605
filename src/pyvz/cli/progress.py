"""Progress of a long call: percent, rate and time left on a terminal, nothing in a pipe."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Bar:
    """Shows `{"stage", "done", "total", "unit"}` messages on stderr when it is a terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._on = not quiet and os.isatty(2)
        self._bar: Any = None
        self._stage = ""
        self._columns = 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, message: dict[str, Any]) -> None:
        """Show one progress message of the server."""
        if not self._on:
            return
        stage = str(message.get("stage") or "")
        if stage != self._stage:
            self.close()
            self._stage = stage
        total = message.get("total")
        if total:
            self._measure(int(message.get("done") or 0), int(total), str(message.get("unit") or ""))
        elif self._bar is None and stage:
            self._line(stage + "...")

    def _measure(self, done: int, total: int, unit: str) -> None:
        if self._bar is None:
            self._erase()
            self._bar = _tqdm(self._stage, total, unit)
        if self._bar is None:  # no tqdm on this machine: percent alone
            self._line(f"{self._stage}: {100 * done // total} %")
            return
        self._bar.total = total
        drawn = self._bar.update(done - self._bar.n)
        if done >= total and not drawn:  # it draws ten times a second; the end is always seen
            self._bar.refresh()

    def _line(self, text: str) -> None:
        """Overwrite the current line; it is erased when the next part begins."""
        self._erase()
        text = text[: _columns() - 1]
        sys.stderr.write(text)
        sys.stderr.flush()
        self._columns = len(text)

    def _erase(self) -> None:
        if self._columns:
            sys.stderr.write("\r" + " " * self._columns + "\r")
            sys.stderr.flush()
            self._columns = 0

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._erase()


def _columns() -> int:
    """Return the width of the terminal; 80 where it does not tell (a serial line)."""
    return os.get_terminal_size(2).columns or 80


def _tqdm(stage: str, total: int, unit: str) -> Any:
    """Return a tqdm bar, or None where the library is missing."""
    sys.path += [place for place in _libraries() if place not in sys.path]
    try:
        from tqdm import tqdm  # noqa: PLC0415  100 ms, only when there is something to show
    except ImportError:
        return None
    of_bytes = unit in {"", "B"}
    return tqdm(
        desc=stage,
        total=total,
        unit="B" if of_bytes else " " + unit,
        unit_scale=of_bytes,
        unit_divisor=1024,
        leave=False,
        ncols=_columns() - 1,
        nrows=20,  # a terminal that does not tell its size would hide the bar
        file=sys.stderr,
    )


def _libraries() -> list[str]:
    """Return where tqdm may be: the launchers run without site-packages (-IS)."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    checkout = os.path.dirname(os.path.dirname(package))
    interpreter = os.environ.get("PYVZ_PYTHON")
    places = [os.path.dirname(os.path.dirname(interpreter))] if interpreter else []
    places.append(os.path.join(checkout, ".venv"))
    found = [os.path.join(place, "lib", version, "site-packages") for place in places]
    return [*found, "/usr/lib/python3/dist-packages"]
