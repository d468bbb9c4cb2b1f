"""Finds workers that do not answer.

A signal has stopped such a worker, or it is stuck in a call. Nothing else would end its
connections.
"""

from collections.abc import Callable, Sequence

import anyio

from frontends.workers.handle import WorkerHandle
from frontends.workers.messages import Check

# Seconds between two checks. A check costs the supervisor 0.1 ms per worker.
ASK_SECONDS = 1.0
# Seconds without an answer after which a worker is killed. The longest observed pause of an event
# loop is 5 s, on a machine with too few cores for its workers.
HUNG_SECONDS = 20.0
# Seconds without an answer after which a worker gets no new connections.
SILENT_SECONDS = 3.0


async def watch(handles: Sequence[WorkerHandle], hung: Callable[[WorkerHandle, float], None], start_seconds: float) -> None:
    """Check every worker once a second; call `hung` with a silent worker and its time limit.

    A worker that does not take requests yet has `start_seconds`. The function counts checks instead
    of seconds, so that no worker is late when this process was stopped too.
    """
    while True:
        for handle in list(handles):
            handle.questions += 1
            handle.silent = handle.questions * ASK_SECONDS > SILENT_SECONDS
            bound = HUNG_SECONDS if handle.up else start_seconds
            if handle.questions * ASK_SECONDS > bound:
                handle.questions = 0
                hung(handle, bound)
            else:
                handle.channel.send(Check())
        await anyio.sleep(ASK_SECONDS)
