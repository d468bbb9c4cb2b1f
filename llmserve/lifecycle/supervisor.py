"""Keeps an engine running: restarts it when it dies or hangs, and gives up after too many deaths.

A restart always covers the whole engine. `Recovery` decides what happens to the requests.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

import anyio
import anyio.abc

from llmserve.config import RestartConfig
from llmserve.engine import EngineStatistics
from llmserve.errors import EngineDead

logger = logging.getLogger(__name__)

# Maximum time between two checks for steps.
LOOK_SECONDS = 1.0


class Supervised(Protocol):
    """The methods of `llmserve.engine.Engine` that the supervisor uses."""

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None: ...

    def kill(self) -> None: ...

    def statistics(self) -> EngineStatistics: ...


class Supervisor:
    """Runs one engine, and restarts it.

    Args:
        busy: Returns the number of requests that the engine should be working on.
        up: Called whenever the engine can accept requests.
        down: Called when it no longer can, with the reason and the seconds until the next start
            (None for never). Called again once those seconds are certain.

    Attributes:
        config: The limits, which may be replaced at any time.
        over: Whether the engine ran and will not be started again.
    """

    def __init__(
        self,
        engine: Supervised,
        config: RestartConfig,
        clock: Callable[[], float],
        *,
        busy: Callable[[], int],
        up: Callable[[], None],
        down: Callable[[EngineDead, float | None], None],
    ) -> None:
        self._engine = engine
        self.config = config
        self._clock = clock
        self._busy = busy
        self._up = up
        self._down = down
        self._deaths: deque[float] = deque()
        # Set to restart the engine, and when it is up or will not be started again.
        self._wanted, self._settled = anyio.Event(), anyio.Event()
        self.over = False
        # The time by which the next step must end, if this is sooner than the stall timeout.
        self._step_by: float | None = None
        # Duration of the last start in seconds.
        self.start_seconds = 0.0
        self.restarts = 0

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run the engine until cancelled; `started()` is called when it is up for the first time.

        Raises what the first start raises. Later it raises EngineDead if the engine is not
        restarted.
        """
        try:
            await self._run(task_status)
        finally:
            self.over = True
            self._settled.set()

    async def _run(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        started = False

        def begun() -> None:
            nonlocal started
            self._up()
            self._settled.set()
            if not started:
                started = True
                task_status.started()

        while True:
            try:
                await self._live(begun)
                self.restarts += 1
                continue
            except Exception as error:
                if not started:
                    raise
                # An engine that reports its own death gives a reason. For other exceptions the
                # traceback is the only clue.
                death = error if isinstance(error, EngineDead) else EngineDead(f"the engine died: {error}")
                if not death.requested:
                    logger.critical("the engine died: %s", error, exc_info=death is not error)
            pause = None if death.for_good else self._pause()
            self._down(death, pause)
            if pause is None:
                raise death
            await anyio.sleep(pause)
            self.restarts += 1

    async def _live(self, begun: Callable[[], None]) -> None:
        """Run the engine once, until a restart is requested. Raises the reason of its death."""
        try:
            async with anyio.create_task_group() as tasks:
                began = self._clock()
                with anyio.move_on_after(self.config.start_timeout) as patience:
                    await tasks.start(self._engine_run)
                if patience.cancelled_caught:
                    raise EngineDead(f"the engine was not up within {self.config.start_timeout:g} s")
                self.start_seconds = self._clock() - began
                begun()
                tasks.start_soon(self._watch)
                self._wanted = anyio.Event()
                await self._wanted.wait()
                self._down(EngineDead("the engine is being restarted on request", requested=True), 0.0)
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # The first exception is the cause; the others come from the shutdown.
            raise group.exceptions[0] from None

    async def _engine_run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        await self._engine.run(task_status=task_status)
        raise EngineDead("the engine stopped by itself")

    async def _watch(self) -> None:
        """Raise EngineDead if the engine has requests and makes no step."""
        steps, since, looked = -1, self._clock(), self._clock()
        while True:
            patience = self.config.stall_timeout
            look = LOOK_SECONDS if patience is None else min(LOOK_SECONDS, patience / 4)
            await anyio.sleep(look)
            now = self._clock()
            made = self._engine.statistics().steps
            # If this process itself stood still, the figures say nothing about the engine.
            if patience is None or made != steps or not self._busy() or now - looked > look + patience / 2:
                steps, since, self._step_by = made, now, None
            elif now - since >= patience or (self._step_by is not None and now >= self._step_by):
                self._engine.kill()
                self._step_by = None
                words = f"the engine made no step for {now - since:.0f} s, with {self._busy()} requests in it"
                error = EngineDead(words, stalled=True)
                # Report this before the engine is taken down, which may take a while.
                self._down(error, self.config.first_pause)
                raise error
            looked = now

    async def restart(self) -> None:
        """End the engine and start it again; return when it is up, or will not be started again."""
        if self.over:
            return
        self._settled = anyio.Event()
        self._wanted.set()
        await self._settled.wait()

    def hurry(self, seconds: float) -> None:
        """Treat the engine as hung if it makes no step within `seconds` from now."""
        self._step_by = self._clock() + seconds

    @property
    def restarts_again(self) -> bool:
        """Whether the engine would be restarted if it died now."""
        return self._recent() < self.config.most

    def _recent(self) -> int:
        """Return the number of deaths within the window."""
        while self._deaths and self._deaths[0] <= self._clock() - self.config.window:
            self._deaths.popleft()
        return len(self._deaths)

    def _pause(self) -> float | None:
        """Count a death; return the seconds until the next start, or None after too many deaths."""
        again = self.restarts_again
        self._deaths.append(self._clock())
        config = self.config
        return float(min(config.longest_pause, config.first_pause * 2 ** (len(self._deaths) - 1))) if again else None
