"""The lines of a batch, run on a manager in process as the server runs them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from frontends.access.caller import Caller
from frontends.answers.served_model import ServedModel
from frontends.batch.answers import Answers
from frontends.batch.lines import Result
from frontends.batch.room import Room
from frontends.batch.runner import Runner
from llmserve import EngineManager


class LocalBatch:
    """One batch behind the manager's other requests, or with the engine to itself if `alone`.

    Attributes:
        answered: The number of lines with an answer.
    """

    def __init__(self, manager: EngineManager, *, alone: bool = False) -> None:
        self._answers = Answers(ServedModel(manager, manager.info.model))
        self._runner = Runner(manager, Room(manager, alone=alone), self._answers)
        self.answered = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["LocalBatch"]:
        async with self._runner.running():
            yield self

    @property
    def stopped(self) -> int:
        """How often a line was stopped for other requests."""
        return self._runner.stopped

    async def run(self, lines: AsyncIterator[bytes]) -> None:
        """Answer the lines, in OpenAI's format. Raises RuntimeError if one fails."""
        await self._runner.run(_numbered(lines), self._answers.table, Caller(), self._put)

    async def _put(self, result: Result) -> None:
        if not result.succeeded:
            raise RuntimeError(f"a line failed: {result}")
        self.answered += 1


async def _numbered(lines: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    number = 0
    async for line in lines:
        number += 1
        yield number, line
