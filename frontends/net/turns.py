"""A queue for work that blocks the event loop, with a pause after each piece of work.

It is for decoding and encoding, which hold the interpreter's lock, so that a thread would not help.
Without pauses, the bodies of eight clients that send 4 MiB each at the same moment would be decoded
before any token of another client is written.
"""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

# The pause's length relative to the work before it: heavy work takes at most half of the event
# loop's time.
REST = 1.0

P = ParamSpec("P")
T = TypeVar("T")


class WorkQueue:
    """A queue for heavy work. A cancelled task leaves the queue."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._rested = 0.0

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` when its turn comes, and return its result.

        It should take at most about 10 ms.
        """
        clock = asyncio.get_running_loop().time
        async with self._lock:
            await asyncio.sleep(max(0.0, self._rested - clock()))
            began = clock()
            try:
                return work(*args, **kwargs)
            finally:
                ended = clock()
                self._rested = ended + REST * (ended - began)
