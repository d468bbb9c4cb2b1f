"""Keeps an engine running: watches that it moves, starts it again when it does not, and gives up when that does not help.

A restart is always of the whole engine. What becomes of requests is not decided here.
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

# How often it is looked whether steps have been made, at most.
LOOK_SECONDS = 1.0


class Supervised(Protocol):
    """What is asked of an engine here: these of `llmserve.engine.Engine`."""

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None: ...

    def kill(self) -> None: ...

    def statistics(self) -> EngineStatistics: ...


class Supervisor:
    """Runs one engine, again and again.

    Args:
        busy: how many requests the engine should be working on.
        up: called whenever the engine can take requests.
        down: called as soon as it cannot any more, with the reason, and about how many seconds later it is started again; None is
            never. A second time when that is known.
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
        self._config = config
        self._clock = clock
        self._busy = busy
        self._up = up
        self._down = down
        self._deaths: deque[float] = deque()
        # When the next step must have ended, if that is sooner than the stall timeout says.
        self._step_by: float | None = None
        # How long the last start took, in seconds.
        self.start_seconds = 0.0
        self.restarts = 0

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, `started()` once the engine is up for the first time.

        Raises what the first start raises; later on EngineDead, when it is not started again.
        """
        started = False

        def begun() -> None:
            nonlocal started
            self._up()
            if not started:
                started = True
                task_status.started()

        while True:
            try:
                await self._live(begun)
            except Exception as error:
                if not started:
                    raise
                # An engine that reports its own death says why; anything else is a surprise, and its traceback the only clue.
                logger.critical("the engine died: %s", error, exc_info=not isinstance(error, EngineDead))
                death = error if isinstance(error, EngineDead) else EngineDead(f"the engine died: {error}")
            pause = None if death.for_good else self._pause()
            self._down(death, pause)
            if pause is None:
                raise death
            await anyio.sleep(pause)
            self.restarts += 1

    async def _live(self, begun: Callable[[], None]) -> None:
        """From a start to a death, which is raised."""
        try:
            async with anyio.create_task_group() as tasks:
                began = self._clock()
                with anyio.move_on_after(self._config.start_timeout) as patience:
                    await tasks.start(self._engine_run)
                if patience.cancelled_caught:
                    raise EngineDead(f"the engine was not up within {self._config.start_timeout:g} s")
                self.start_seconds = self._clock() - began
                begun()
                await self._watch()
        except BaseExceptionGroup as group:
            # The first one is why; what came of taking the rest down is not.
            raise group.exceptions[0] from None

    async def _engine_run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        await self._engine.run(task_status=task_status)
        raise EngineDead("the engine stopped by itself")

    async def _watch(self) -> None:
        """Raises EngineDead when the engine has something to do and makes no step."""
        patience = self._config.stall_timeout
        if patience is None:
            await anyio.sleep_forever()
            return
        look = min(LOOK_SECONDS, patience / 4)
        steps, since, looked = -1, self._clock(), self._clock()
        while True:
            await anyio.sleep(look)
            now = self._clock()
            made = self._engine.statistics().steps
            # Where this process itself stood still, nothing is known of the engine.
            if made != steps or not self._busy() or now - looked > look + patience / 2:
                steps, since, self._step_by = made, now, None
            elif now - since >= patience or (self._step_by is not None and now >= self._step_by):
                self._engine.kill()
                self._step_by = None
                words = f"the engine made no step for {now - since:.0f} s, with {self._busy()} requests in it"
                error = EngineDead(words, stalled=True)
                # Before it is taken down, which may take a while.
                self._down(error, self._config.first_pause)
                raise error
            looked = now

    def hurry(self, seconds: float) -> None:
        """Take the engine for hung if it makes no step within so many seconds from now."""
        self._step_by = self._clock() + seconds

    @property
    def restarts_again(self) -> bool:
        """Whether it would, if the engine died now."""
        return self._recent() < self._config.most

    def _recent(self) -> int:
        """Deaths that still count."""
        while self._deaths and self._deaths[0] <= self._clock() - self._config.window:
            self._deaths.popleft()
        return len(self._deaths)

    def _pause(self) -> float | None:
        """Seconds until the next start; None if there have been too many."""
        again = self.restarts_again
        self._deaths.append(self._clock())
        config = self._config
        return float(min(config.longest_pause, config.first_pause * 2 ** (len(self._deaths) - 1))) if again else None
