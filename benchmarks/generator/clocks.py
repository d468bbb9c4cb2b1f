"""How far another host's monotonic clock is from ours.

The answer to a question was read somewhere between sending and receiving. The middle is the
estimate, and half of the round trip is its greatest error.
"""

from collections.abc import Callable

import attrs

from benchmarks.generator import messages
from benchmarks.generator.messages import Clock, Link, ReadClock

# The shortest round trip of several has the smallest error.
ROUND_TRIPS = 8


@attrs.frozen
class Offset:
    """Another clock minus ours, and the greatest error of it, in seconds."""

    seconds: float = 0.0
    error: float = 0.0


SAME_CLOCK = Offset()


async def measure(link: Link, clock: Callable[[], float]) -> Offset:
    """Ask a worker that is not in the middle of a job for its clock. Raises LinkLost."""
    found = []
    for _ in range(ROUND_TRIPS):
        sent = clock()
        await link.send(ReadClock())
        while not isinstance(answer := await link.receive(messages.FROM_WORKER), Clock):
            pass
        received = clock()
        found.append(Offset(answer.seconds - (sent + received) / 2, (received - sent) / 2))
    return min(found, key=lambda offset: offset.error)
