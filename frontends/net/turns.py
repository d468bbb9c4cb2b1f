"""Work that would hold up the event loop: one piece at a time, with a rest after each piece in which everything else goes on.

For what no thread makes better: decoding and encoding hold the interpreter's lock until they are done. Eight clients that send
4 MiB each at the same moment would otherwise be decoded one after the other, before any token of another client is written.
"""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

# A piece is followed by a rest of the same length, so that heavy work takes at most half of the event loop's time.
REST = 1.0

P = ParamSpec("P")
T = TypeVar("T")


class WorkQueue:
    """A line for heavy work. A task that is cancelled in it leaves it."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._rested = 0.0

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns, or raises. It should take some ten milliseconds at most."""
        clock = asyncio.get_running_loop().time
        async with self._lock:
            await asyncio.sleep(max(0.0, self._rested - clock()))
            began = clock()
            try:
                return work(*args, **kwargs)
            finally:
                ended = clock()
                self._rested = ended + REST * (ended - began)
