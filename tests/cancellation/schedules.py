"""An event loop on a virtual clock that wakes tasks in an order chosen by a seed.

asyncio wakes tasks in order of arrival, but does not promise it. Only tasks change places, among
themselves. Callbacks stay in place, because asyncio promises their order and code may rely on it.
"""

import asyncio
import random

from benchmarks.stand_ins.virtual_clock import VirtualLoop


class ShuffledLoop(VirtualLoop):
    def __init__(self, seed):
        super().__init__()
        self._rng = random.Random(seed)

    def _run_once(self):
        ready = self._ready  # type: ignore[attr-defined]  # private in asyncio.BaseEventLoop
        places = [place for place, handle in enumerate(ready) if _is_task(handle)]
        if len(places) > 1:
            handles = [ready[place] for place in places]
            self._rng.shuffle(handles)
            for place, handle in zip(places, handles, strict=True):
                ready[place] = handle
        super()._run_once()  # type: ignore[misc]  # private in asyncio.BaseEventLoop


def _is_task(handle):
    """Whether the callback is a task's first or next step."""
    callback = handle._callback
    return type(callback).__name__ in ("TaskStepMethWrapper", "TaskWakeupMethWrapper") or isinstance(
        getattr(callback, "__self__", None), asyncio.Task
    )
