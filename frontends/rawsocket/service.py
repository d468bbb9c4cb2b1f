"""What all connections of a raw-socket server share: the manager, limits, tasks and their end."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import anyio
import attrs
import msgspec

from frontends.access.control import Access
from frontends.net.flush import FlushScheduler
from frontends.net.receive_budget import ReceiveBudget
from frontends.net.turns import WorkQueue
from frontends.openai.decoding import BodyReader
from frontends.openai.requests import GenerateRequest
from llmserve import EngineManager

# Maximum seconds to write remaining data when the server ends.
CLOSE_SECONDS = 2.0


@attrs.define
class Service:
    """The state that all connections share."""

    manager: EngineManager
    model: str
    access: Access
    max_streams: int = 1024
    transports: set[asyncio.Transport] = attrs.field(factory=set)
    tasks: set[asyncio.Task[None]] = attrs.field(factory=set)
    scheduler: FlushScheduler = attrs.field(factory=FlushScheduler)
    budget: ReceiveBudget = attrs.field(factory=lambda: ReceiveBudget(time.monotonic))
    reader: BodyReader[GenerateRequest] = attrs.field(factory=lambda: BodyReader(GenerateRequest, WorkQueue(), msgspec.msgpack))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` as a task that ends with the service at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        """Write remaining data for a limited time, then end all connections and tasks."""
        for transport in list(self.transports):
            transport.close()
        with anyio.move_on_after(CLOSE_SECONDS):
            while self.transports:  # noqa: ASYNC110 - a connection's end is a callback without an event
                await anyio.sleep(0.01)
        for transport in list(self.transports):
            transport.abort()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
