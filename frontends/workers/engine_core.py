"""The one engine core that all workers share, as a supervisor wants an engine: it is started, watched, killed and started again."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

from llmserve import EngineStatistics
from llmserve.engines.vllm.shared_core import VLLMCore
from llmserve.runtime.starting import start_in_thread

# A process's end is noticed so soon.
WATCH_SECONDS = 0.1


class SharedCore:
    """Satisfies `llmserve.lifecycle.supervisor.Supervised`.

    Args:
        at_once, in_all: workers that there are, and will ever be.
        open: called when the workers may take their places at the core, which is still being launched the first time and no later time.
        joined: whether all of them have. Raises what keeps them from it.
        steps: how many steps the core has made, as the workers tell.
    """

    def __init__(
        self,
        model: str,
        engine_args: Mapping[str, Any],
        *,
        at_once: int,
        in_all: int,
        open: Callable[[], None],  # noqa: A002 - as in "the doors open"
        joined: Callable[[], bool],
        steps: Callable[[], float],
    ) -> None:
        self._make = partial(VLLMCore, model, engine_args, at_once=at_once, in_all=in_all)
        self._open = open
        self._joined = joined
        self._steps = steps
        # At which workers can have places, and which one it is, from 1.
        self.core: VLLMCore | None = None
        self.life = 0

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """As `Engine.run` does. Raises ConfigurationError, EngineDead, and what `joined` raises."""
        core = self._make()
        try:
            await start_in_thread(core.configure)
            self.life += 1
            if self.life == 1:
                # Workers start with it, as importing vLLM takes them as long as loading the model takes the core. One that waits for a
                # core that dies in its start waits for minutes: the first time that is everybody's end anyhow.
                self._offer(core)
            await start_in_thread(lambda _: core.launch(), end=core.kill)
            if self.life > 1:
                self._offer(core)
            while not self._joined():
                core.check()
                await anyio.sleep(WATCH_SECONDS)
            task_status.started()
            while True:
                core.check()
                await anyio.sleep(WATCH_SECONDS)
        finally:
            self.core = None
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(core.stop)

    def _offer(self, core: VLLMCore) -> None:
        self.core = core
        self._open()

    def kill(self) -> None:
        if self.core is not None:
            self.core.kill()

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(steps=int(self._steps()))
