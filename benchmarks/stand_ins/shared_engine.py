"""One engine shared by several managers, used one after another, to compare their admission."""

from collections.abc import Callable

import anyio
import anyio.abc

from llmserve.engine import Engine, EngineInfo, EnginePrompt, EngineStatistics, Sink
from llmserve.request import GenerationRequest, Sampling


class SharedEngine:
    """An `Engine` that wraps a running one; all its managers are notified of its steps."""

    def __init__(self, engine: Engine) -> None:
        self.inner = engine
        self._watchers: list[Callable[[], None]] = []
        engine.watch(self._stepped)

    def _stepped(self) -> None:
        for stepped in self._watchers:
            stepped()

    @property
    def info(self) -> EngineInfo:
        return self.inner.info

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await anyio.sleep_forever()

    def kill(self) -> None:
        self.inner.kill()

    async def tokenize(self, request: GenerationRequest) -> EnginePrompt:
        return await self.inner.tokenize(request)

    def reader(self, request: GenerationRequest, prompt: EnginePrompt) -> None:
        """Return no parser: answers are text."""

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return await self.inner.detokenize(token_ids)

    async def submit(self, request_id: str, prompt: EnginePrompt, sampling: Sampling, priority: int, sink: Sink) -> None:
        await self.inner.submit(request_id, prompt, sampling, priority, sink)

    async def abort(self, request_id: str) -> None:
        await self.inner.abort(request_id)

    def statistics(self) -> EngineStatistics:
        return self.inner.statistics()

    def watch(self, stepped: Callable[[], None]) -> None:
        self._watchers.append(stepped)

    async def suspects(self, step_seconds: float) -> list[str]:
        return await self.inner.suspects(step_seconds)

    def check_health(self) -> None:
        self.inner.check_health()
