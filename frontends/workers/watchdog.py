"""Finds workers that do not answer: stopped by a signal, or stuck in a call that does not return. Nothing else ends their connections."""

from collections.abc import Callable, Sequence

import anyio

from frontends.workers.handle import WorkerHandle
from frontends.workers.messages import Check

# Between two questions. A worker that is asked costs 0.1 ms.
ASK_SECONDS = 1.0
# The longest that an event loop was ever seen busy is 5 s, on a machine with too few cores for its workers.
HUNG_SECONDS = 20.0
# New connections go to other workers from here on.
SILENT_SECONDS = 3.0


async def watch(handles: Sequence[WorkerHandle], hung: Callable[[WorkerHandle, float], None], start_seconds: float) -> None:
    """Ask every worker once a second; call `hung` with a worker and the seconds that it may be silent. A worker that does not take requests
    yet has `start_seconds`.

    Questions are counted, and not seconds: while this process is stopped too, no worker is late.
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
