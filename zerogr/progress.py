"""Progress: how much is done, how fast, how much longer. A line on the terminal, or a log line every half minute elsewhere."""

from __future__ import annotations

import logging
import sys
import time

logger = logging.getLogger(__name__)


def duration(seconds: float) -> str:
    """Returns 42s, 3m05s or 2h10m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}h{minutes_left:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class Progress:
    """Counts units of work of one stage and shows count, rate and ETA on standard error."""

    def __init__(self, name: str, *, total: int | None = None, unit: str = "rows", done: int = 0) -> None:
        """Starts the clock. `done` of `total` units were finished by an earlier run and do not count for the rate."""
        self._name, self._total, self._unit = name, total, unit
        self._done, self._earlier = done, done
        self._is_terminal = sys.stderr.isatty()
        self._start = self._last_shown = time.monotonic()

    def advance(self, count: int, note: str = "") -> None:
        """Adds finished units; `note` is shown behind them, such as a loss."""
        self._done += count
        now = time.monotonic()
        if now - self._last_shown >= (0.5 if self._is_terminal else 30.0):
            self._last_shown = now
            self._show(note)

    def _show(self, note: str) -> None:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = (self._done - self._earlier) / elapsed
        text = f"{self._name}: {self._done:,}"
        if self._total is not None:
            text += f" of {self._total:,}"
        text += f" {self._unit}, {rate:,.1f}/s"
        if self._total is not None and rate > 0:
            text += f", {duration((self._total - self._done) / rate)} left"
        text += f", {note}" if note else ""
        if self._is_terminal:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        else:
            logger.info("%s", text)

    def close(self) -> None:
        """Ends the line on the terminal."""
        if self._is_terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
