"""A virtual clock for asyncio: sleeping costs nothing, deadlines are exact, a hang is an error.

Use it only in memory. With real sockets, threads or processes the clock would run ahead of the I/O.
"""

import asyncio
import selectors


class _Selector(selectors.SelectSelector):
    """Never waits: it adds the time that the loop would sleep to its clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise RuntimeError("deadlock: every task is blocked, and no timer runs")
            self.now += max(0.0, timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    def spend(self, seconds: float) -> None:
        """Let time pass without yielding to another task, like work that keeps the core busy."""
        self._virtual.now += seconds
