"""An event loop on a virtual clock that wakes tasks in an order of its seed's, where asyncio wakes them as they came.

Only tasks change places, among themselves: callbacks stay where they are, because asyncio promises their order and code may rely on it.
Which task runs first is promised by nobody.
"""

import asyncio
import random

from virtual import VirtualLoop


class ShuffledLoop(VirtualLoop):
    def __init__(self, seed):
        super().__init__()
        self._rng = random.Random(seed)

    def _run_once(self):
        ready = self._ready
        places = [place for place, handle in enumerate(ready) if _is_task(handle)]
        if len(places) > 1:
            handles = [ready[place] for place in places]
            self._rng.shuffle(handles)
            for place, handle in zip(places, handles, strict=True):
                ready[place] = handle
        super()._run_once()


def _is_task(handle):
    """Its first step, or its next one."""
    callback = handle._callback
    return type(callback).__name__ in ("TaskStepMethWrapper", "TaskWakeupMethWrapper") or isinstance(
        getattr(callback, "__self__", None), asyncio.Task
    )
