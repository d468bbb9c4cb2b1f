"""CancellationToken: says once, from any task or thread, that an answer is not wanted any more.

Knows no event loop: whoever waits registers a callback and brings it to its own loop.
"""

import math
import threading
from collections.abc import Callable


class CancellationToken:
    """Cancels every request that it was handed to. The first reason wins; cancelling again changes nothing.

    `deadline` is a reading of the monotonic clock (`anyio.current_time()`) after which requests with this token end by
    themselves; infinity sets none. A token made with `parents` is cancelled when one of them is, and ends no later.

    Safe to use from any thread. Callbacks run in the thread that cancels.
    """

    def __init__(self, *parents: "CancellationToken", deadline: float = math.inf) -> None:
        self.deadline: float = min([deadline, *(parent.deadline for parent in parents)])
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._callbacks: dict[int, Callable[[str], None]] = {}
        self._last_key = 0
        self._unlink: list[Callable[[], None]] = []
        # Not in one expression: a parent that is cancelled already calls back at once, and cancel() walks this list.
        for parent in parents:
            self._unlink.append(parent.add_callback(self._cancel_quietly))

    def __repr__(self) -> str:
        state = "active" if self._reason is None else f"cancelled: {self._reason}"
        return f"<CancellationToken {state}, {len(self._callbacks)} callbacks>"

    @property
    def cancelled(self) -> bool:
        """True from the first `cancel()` on."""
        return self._reason is not None

    @property
    def reason(self) -> str | None:
        """The first reason given, None while not cancelled."""
        return self._reason

    def cancel(self, reason: str = "cancelled by the caller") -> bool:
        """Cancel; True if this call was the one that did it."""
        with self._lock:
            if self._reason is not None:
                return False
            self._reason = reason
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        self.close()
        for callback in callbacks:
            callback(reason)
        return True

    def add_callback(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call `callback(reason)` on cancellation, at once if that was before. Returns what takes the callback off again."""
        with self._lock:
            reason = self._reason
            if reason is None:
                self._last_key += 1
                key = self._last_key
                self._callbacks[key] = callback
                return lambda: self._remove(key)
        callback(reason)
        return lambda: None

    def close(self) -> None:
        """Let go of the parents, so that a long-lived parent does not keep every child in memory."""
        for unlink in self._unlink:
            unlink()
        self._unlink = []

    def _remove(self, key: int) -> None:
        with self._lock:
            self._callbacks.pop(key, None)

    def _cancel_quietly(self, reason: str) -> None:
        self.cancel(reason)
