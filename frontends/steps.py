"""One turn for everyone after each step of the engine: a step wakes the event loop once, and not once for each of its streams."""

import asyncio
import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Steps:
    """Collects, in the middle of a step, who wants to write, and lets them when it is over. Shared by the connections of one event loop."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def after(self, write: Callable[[], None]) -> None:
        """Call `write()` once this step is over. A caller sees to it that it is not there twice."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._over)
        self._waiting.append(write)

    def _over(self) -> None:
        waiting, self._waiting = self._waiting, []
        for write in waiting:
            try:
                write()
            except Exception:
                # One connection's trouble must not become everyone's.
                logger.exception("writing to a connection failed")
