"""How fast work leaves, learnt from when it left."""

from collections import deque

# Enough departures for a steady figure (its standard error is about 1/sqrt(64) = 12 % if they come at random), few enough
# to follow a change of load within a minute at one request a second.
WINDOW = 64


class DrainRate:
    """Departures per second over the last departures of one busy period.

    A busy period ends when nothing runs or waits any more: idle time says nothing about speed, so the memory is cleared, but the
    last rate is kept as the best guess for the start of the next one.
    """

    def __init__(self) -> None:
        self._departures: deque[float] = deque(maxlen=WINDOW)
        self._last: float | None = None

    def departed(self, now: float, *, idle: bool) -> None:
        """Something left at `now`; `idle` if nothing runs or waits any more."""
        self._departures.append(now)
        self._last = self._current(now) or self._last
        if idle:
            self._departures.clear()

    def rate(self, now: float) -> float | None:
        """Departures per second, None before the second one. Falls while nothing leaves."""
        return self._current(now) or self._last

    def _current(self, now: float) -> float | None:
        if len(self._departures) < 2:
            return None
        span = max(now, self._departures[-1]) - self._departures[0]
        return (len(self._departures) - 1) / span if span > 0 else None
