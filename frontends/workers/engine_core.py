"""An engine core that all workers share, in the form that `llmserve`'s supervisor runs."""

from collections.abc import Callable

import anyio
import anyio.abc
import anyio.to_thread

from llmserve import EngineDead, EngineStatistics
from llmserve.engines.vllm.shared_core import VLLMCore
from llmserve.runtime.starting import start_in_thread

# Seconds between two checks for the end of the engine's processes.
WATCH_SECONDS = 0.1


class SharedCore:
    """Satisfies `llmserve.lifecycle.supervisor.Supervised`.

    Args:
        make: makes a core for the next life.
        open: called when the workers may take their places at the core. The first core is then
            still starting; later cores have started.
        joined: returns whether all workers have joined the core. Raises a worker's failure.
        steps: returns the number of the core's steps, as the workers report it.
        died: called with the reason as soon as a core that was up has died. Its remains are removed
            after that, which may take seconds.
    """

    def __init__(
        self,
        make: Callable[[], VLLMCore],
        *,
        open: Callable[[], None],  # noqa: A002 - the verb, for "open to workers"
        joined: Callable[[], bool],
        steps: Callable[[], float],
        died: Callable[[EngineDead], None],
    ) -> None:
        self._make = make
        self._open = open
        self._joined = joined
        self._steps = steps
        self._died = died
        # The core where workers can have places, and its number, from 1.
        self.core: VLLMCore | None = None
        self.life = 0

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run the core, like `Engine.run`.

        Raises ConfigurationError, EngineDead and `joined`'s errors.
        """
        core = self._make()
        try:
            await start_in_thread(core.configure)
            self.life += 1
            if self.life == 1:
                # Workers start together with the first core, because their import of vLLM takes as
                # long as the core's loading of the model. A worker would wait minutes for a core
                # that dies during its start, but the first core's death ends the program anyway.
                self._offer(core)
            await start_in_thread(core.launch, end=core.kill)
            if self.life > 1:
                self._offer(core)
            while not self._joined():
                core.check()
                await anyio.sleep(WATCH_SECONDS)
            task_status.started()
            await self._watch(core)
        finally:
            self.core = None
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(core.stop)

    async def _watch(self, core: VLLMCore) -> None:
        while True:
            try:
                core.check()
            except EngineDead as error:
                self._died(error)
                raise
            await anyio.sleep(WATCH_SECONDS)

    def _offer(self, core: VLLMCore) -> None:
        self.core = core
        self._open()

    def kill(self) -> None:
        if self.core is not None:
            self.core.kill()

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(steps=int(self._steps()))
