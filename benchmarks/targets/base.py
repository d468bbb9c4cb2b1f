"""The seam: a target sends an item and fills in its record; a new wire is a new module."""

from collections.abc import Callable
from typing import Protocol

import anyio

from benchmarks.recording.results import RequestRecord
from benchmarks.workload.requests import Item


class TargetError(Exception):
    """The target cannot be measured; the message says why."""


class Target(Protocol):
    """A target of the load.

    `now` returns seconds since the point's start, and `origin` is that start on the monotonic
    clock.
    """

    async def send(self, item: Item, record: RequestRecord, now: Callable[[], float], origin: float) -> tuple[int, ...]:
        """Send one request to its end; return the answer's token ids if the target has them.

        A failure of the target is an outcome, not an exception.
        """


async def with_patience(target: Target, item: Item, record: RequestRecord, now: Callable[[], float], origin: float) -> tuple[int, ...]:
    """Send a request as a client that may leave before the end, or give up at its timeout."""
    limits = [seconds for seconds in (item.cancel_after, item.timeout) if seconds is not None]
    answer: tuple[int, ...] = ()
    if not limits:
        answer = await target.send(item, record, now, origin)
    else:
        with anyio.move_on_after(min(limits)) as scope:
            answer = await target.send(item, record, now, origin)
        if scope.cancelled_caught and item.cancel_after == min(limits):
            record.outcome, record.detail = "cancelled", f"the client left after {item.cancel_after:g} s"
        elif scope.cancelled_caught:
            record.outcome, record.detail = "timeout", f"no end after {item.timeout:g} s"
    record.finished = now()
    return answer
