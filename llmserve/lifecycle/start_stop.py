"""`start()`, `close()` and `async with` of a manager, from any task of its event loop."""

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from llmserve.runtime.lifespan import Lifespan
from llmserve.state import State


class Lifecycle(ABC):
    """A subclass defines what runs in between (`_live`), and how its requests end."""

    def __init__(self, drain_timeout: float) -> None:
        self.state = State.NEW
        self._drain_timeout = drain_timeout
        self._lifespan: Lifespan | None = None
        # Seconds that open requests get at the end; None until the end is requested.
        self._patience: float | None = None

    def _allow_to_drain(self, seconds: float) -> None:
        """Replace the time that open requests get at the end."""
        self._drain_timeout = seconds

    async def start(self) -> None:
        """Start the engine; return when any task of this event loop can make requests.

        `async with` does this too, and always closes the manager. A manager starts once. If this
        call is cancelled, it stops what it has started.

        Raises:
            ConfigurationError, EngineError: The engine cannot start.
            RuntimeError: The manager was started or closed before, or another task closed it during
                its start.
        """
        if self.state is not State.NEW:
            raise RuntimeError(f"a manager starts once, and this one is {self.state.value}; make another EngineManager")
        self.state = State.STARTING
        self._lifespan = Lifespan(self._live, self._end_requests)
        await self._lifespan.start()

    async def close(self) -> None:
        """Drain for at most `ManagerConfig.drain_timeout` seconds, then stop the engine.

        Requests that are still open then get an error. The call returns when the engine has
        stopped. Any task of the manager's event loop may call it, also during the start, and more
        than once. If the call is cancelled, it ends the drain at once, and still waits for the
        engine's end.

        Raises RuntimeError in another event loop or thread.
        """
        await self._close(self._drain_timeout)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # The body's error propagates unchanged, and there is no drain.
        await self._close(self._drain_timeout if error is None else 0.0, quietly=error is not None)

    async def _close(self, patience: float, *, quietly: bool = False) -> None:
        if self.state is State.NEW:
            self.state = State.STOPPED
        if self._lifespan is None or self.state is State.STOPPED:
            return
        self._require_home()
        self._patience = patience if self._patience is None else min(patience, self._patience)
        self._stop_taking()
        if not patience:
            self._end_requests()
        try:
            await self._lifespan.close(quietly=quietly)
        finally:
            if self._lifespan.has_ended:
                self.state = State.STOPPED

    def _require_home(self) -> None:
        """Raise RuntimeError in another event loop or thread."""
        if self._lifespan is not None and self.state is not State.STOPPED:
            self._lifespan.home.require("manager")

    def _stop_taking(self) -> None:
        """Accept no more requests."""
        if self.state in (State.READY, State.RESTARTING):
            self.state = State.DRAINING

    @abstractmethod
    def _live(self) -> AbstractAsyncContextManager[object]:
        """Return the body of the manager.

        A separate task enters it at the start, and leaves it at the end after at most `_patience`
        seconds.
        """

    @abstractmethod
    def cancel_all(self, reason: str) -> None:
        """End every open request now; each reader gets an `Unavailable` error with this reason."""

    def _end_requests(self) -> None:
        self.cancel_all("the server is stopping")
