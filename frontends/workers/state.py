"""The state of the supervisor, which the parts of its process share."""

import asyncio

import anyio
import attrs

from frontends.workers.messages import Failed
from llmserve import ConfigurationError, EngineDead

WATCH_SECONDS = 0.2


@attrs.define
class SupervisorState:
    """The state of the supervisor.

    Attributes:
        serving: whether all initial workers have been up.
        stopping: whether the server is ending.
        failure: why the server cannot serve; None while it can.
    """

    serving: bool = False
    stopping: bool = False
    failure: Failed | None = None
    _change: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)

    def fail(self, reason: str) -> None:
        """Note that the engine or too many workers have died."""
        self.failure = Failed(reason, wrong_argument=False)
        self.notify()

    def check(self) -> None:
        """Raise ConfigurationError or EngineDead after a failure."""
        if self.failure is not None:
            kind = ConfigurationError if self.failure.wrong_argument else EngineDead
            raise kind(self.failure.reason)

    def notify(self) -> None:
        """Wake the task that waits for a change."""
        self._change.set()

    async def changed(self) -> None:
        """Wait for a change, for at most WATCH_SECONDS."""
        with anyio.move_on_after(WATCH_SECONDS):
            await self._change.wait()
        self._change.clear()
