"""The seam: a target sends one item and fills in its record. A frontend with a wire of its own adds a module beside these."""

from collections.abc import Callable
from typing import Protocol

import anyio

from benchmarks.recording.results import RequestRecord
from benchmarks.workload.requests import Item


class TargetError(Exception):
    """The target cannot be measured at all; the message says why."""


class Target(Protocol):
    """Something that answers. `now` gives seconds from the point's start, and `origin` is that start on the monotonic clock."""

    async def send(self, item: Item, record: RequestRecord, now: Callable[[], float], origin: float) -> tuple[int, ...]:
        """One request to its end. Raises nothing that the target did: that is an outcome. Returns the answer's token ids, none where
        the target does not tell them."""


async def with_patience(target: Target, item: Item, record: RequestRecord, now: Callable[[], float], origin: float) -> tuple[int, ...]:
    """Send, as a client that may leave before the end."""
    seconds = item.cancel_after
    answer: tuple[int, ...] = ()
    if seconds is None:
        answer = await target.send(item, record, now, origin)
    else:
        with anyio.move_on_after(seconds) as scope:
            answer = await target.send(item, record, now, origin)
        if scope.cancelled_caught:
            record.outcome, record.detail = "cancelled", f"the client left after {seconds:g} s"
    record.finished = now()
    return answer
