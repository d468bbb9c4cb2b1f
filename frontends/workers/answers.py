"""The answers that all workers share, for `Idempotency-Key`: the owner has them, because what is sent again may reach another worker."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from frontends.errors import HTTPFailure
from frontends.http.idempotency import Answers, Kept, Name
from frontends.workers.messages import Answered, Claim, Claimed


class SharedAnswers:
    """A worker's side: satisfies `frontends.http.idempotency.Memory`."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[asyncio.Future[Kept | None], Name]] = {}

    async def begin(self, name: Name, body: bytes) -> Kept | None:
        number = next(self._numbers)
        answered: asyncio.Future[Kept | None] = asyncio.get_running_loop().create_future()
        self._asked[number] = answered, name
        self._send(Claim(number, name, body))
        return await answered

    def end(self, name: Name, kind: str = "", answer: bytes | None = None) -> None:
        self._send(Answered(name, kind, answer))

    def claimed(self, message: Claimed) -> None:
        answered, name = self._asked.pop(message.number)
        if message.refused is not None:
            if not answered.done():
                answered.set_exception(HTTPFailure(*message.refused))
        elif not answered.done():
            answered.set_result(message.kept)
        elif message.kept is None:
            # Who asked has gone meanwhile, and nobody will answer it.
            self.end(name)


class AnswersDesk:
    """The owner's side, for one worker; closed at its end."""

    def __init__(self, answers: Answers, send: Callable[[Any], None]) -> None:
        self._answers = answers
        self._send = send
        self._running: set[Name] = set()

    def receive(self, message: Claim | Answered) -> None:
        match message:
            case Claim():
                self._claim(message)
            case Answered():
                self._running.discard(message.name)
                self._answers.end(message.name, message.kind, message.answer)

    def _claim(self, message: Claim) -> None:
        kept, refused = None, None
        try:
            kept = self._answers.claim(message.name, message.body)
        except HTTPFailure as error:
            refused = error.status, str(error), error.code, error.headers
        else:
            if kept is None:
                self._running.add(message.name)
        self._send(Claimed(message.number, kept, refused))

    def close(self) -> None:
        for name in self._running:
            self._answers.end(name)
