import asyncio
from collections.abc import Callable

import anyio
from anyio.abc import TaskStatus

from llmserve import Delta, EngineInfo, EngineManager, EngineStatistics, GenerationRequest, Sampling
from llmserve.engine import EnginePrompt, Sink


class Echo:
    """Repeats the prompt at once, so it has nothing to abort and no steps to report."""

    info = EngineInfo(name="echo", version="1", model="echo", max_model_len=1000, vocab_size=256, max_num_seqs=8)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        task_status.started()  # from here on the engine accepts requests; it ends when it is cancelled
        await anyio.sleep_forever()

    async def tokenize(self, request: GenerationRequest) -> EnginePrompt:
        return EnginePrompt(token_ids=tuple(str(request.prompt or request.messages).encode()))

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return bytes(token_ids).decode(errors="replace")

    async def submit(self, request_id: str, prompt: EnginePrompt, sampling: Sampling, priority: int, sink: Sink) -> None:
        tokens = prompt.token_ids[: sampling.max_tokens]
        sink.put(Delta(await self.detokenize(tokens), tokens, finish_reason="stop"))

    async def abort(self, request_id: str) -> None: ...

    async def suspects(self, step_seconds: float) -> list[str]:
        return []

    def statistics(self) -> EngineStatistics:
        return EngineStatistics()

    def reader(self, request: GenerationRequest, prompt: EnginePrompt) -> None: ...

    def kill(self) -> None: ...

    def watch(self, stepped: Callable[[], None]) -> None: ...

    def check_health(self) -> None: ...


async def main() -> None:
    async with EngineManager(Echo()) as manager:
        print((await manager.generate("Hello, engine")).text)


asyncio.run(main())
