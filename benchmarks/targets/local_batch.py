"""The lines of a batch, run on a manager in process as the server runs them."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

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
        answers = Answers(ServedModel(manager, manager.info.model))
        self._urls = frozenset(answers.table)
        self._runner = Runner(manager, Room(manager, alone=alone), answers)
        self.answered = 0

    def running(self) -> AbstractAsyncContextManager[object]:
        """Return the context in which lines start and stop."""
        return self._runner.running()

    @property
    def stopped(self) -> int:
        """How often a line was stopped for other requests."""
        return self._runner.stopped

    async def run(self, lines: AsyncIterator[tuple[int, bytes]]) -> None:
        """Answer the lines, each with its number, in OpenAI's format. Raises RuntimeError if one fails."""
        await self._runner.run(lines, self._urls, Caller(), self._put)

    async def _put(self, result: Result) -> None:
        if not result.succeeded:
            raise RuntimeError(f"a line failed: {result}")
        self.answered += 1
