"""CancellationToken cancels requests from any task or thread.

The module knows no event loop: a callback must reach its own loop by itself.
"""

import math
import threading
from collections.abc import Callable


class CancellationToken:
    """Cancels every request that it was passed to. The first reason wins.

    `deadline` is a time of the monotonic clock (`anyio.current_time()`) at which requests with this
    token end; infinity sets none. A token with `parents` is cancelled as soon as one of them is,
    and its deadline is no later than theirs.

    All methods may be called from any thread. Callbacks run in the thread that cancels.
    """

    def __init__(self, *parents: "CancellationToken", deadline: float = math.inf) -> None:
        self.deadline: float = min([deadline, *(parent.deadline for parent in parents)])
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._callbacks: dict[int, Callable[[str], None]] = {}
        self._last_key = 0
        self._unlink: list[Callable[[], None]] = []
        # The list must exist first: a parent that is already cancelled calls back at once, and
        # cancel() iterates over the list.
        for parent in parents:
            self._unlink.append(parent.add_callback(self._cancel_quietly))

    def __repr__(self) -> str:
        state = "active" if self._reason is None else f"cancelled: {self._reason}"
        return f"<CancellationToken {state}, {len(self._callbacks)} callbacks>"

    @property
    def cancelled(self) -> bool:
        """Whether `cancel()` has been called."""
        return self._reason is not None

    @property
    def reason(self) -> str | None:
        """The first reason, or None if the token is not cancelled."""
        return self._reason

    def cancel(self, reason: str = "cancelled by the caller") -> bool:
        """Cancel the requests; return True if this was the first call."""
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
        """Call `callback(reason)` on cancellation, or at once if the token is already cancelled.

        Return a function that removes the callback.
        """
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
        """Detach from the parents, so that a long-lived parent does not keep its children."""
        for unlink in self._unlink:
            unlink()
        self._unlink = []

    def _remove(self, key: int) -> None:
        with self._lock:
            self._callbacks.pop(key, None)

    def _cancel_quietly(self, reason: str) -> None:
        self.cancel(reason)
