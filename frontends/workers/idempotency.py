"""`Idempotency-Key` with several workers: a repeated request may reach another worker.

So the supervisor has the store.
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from frontends.http.idempotency_store import CachedResponse, Name, ResponseCache
from frontends.http.idempotency_store import Claim as OwnedClaim
from frontends.openai.errors import HTTPFailure
from frontends.workers.messages import Answered, Claim, Claimed


class IdempotencyClient:
    """The worker's side, which satisfies `frontends.http.idempotency.IdempotencyStore`.

    A claim is the number of its `Claim` message.
    """

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[CachedResponse | int]] = {}

    async def begin(self, name: Name, body: bytes) -> CachedResponse | int:
        number = next(self._numbers)
        answered: asyncio.Future[CachedResponse | int] = asyncio.get_running_loop().create_future()
        self._asked[number] = answered
        self._send(Claim(number, name, body))
        try:
            return await answered
        except asyncio.CancelledError:
            # If the client is lost in the same loop iteration in which `Claimed` arrives, no
            # request takes the claim.
            if not answered.cancelled() and answered.exception() is None and answered.result() == number:
                self.end(number)
            raise

    def end(self, claim: int, kind: str = "", answer: bytes | None = None) -> None:
        self._send(Answered(claim, kind, answer))

    def claimed(self, message: Claimed) -> None:
        answered = self._asked.pop(message.number)
        if answered.done():
            # The client was lost before the supervisor answered.
            if message.kept is None and message.refused is None:
                self.end(message.number)
        elif message.refused is not None:
            answered.set_exception(HTTPFailure(*message.refused))
        else:
            answered.set_result(message.number if message.kept is None else message.kept)


class IdempotencyServer:
    """The supervisor's side for one worker. The worker's open claims end with the worker."""

    def __init__(self, answers: ResponseCache, send: Callable[[Any], None]) -> None:
        self._answers = answers
        self._send = send
        self._claims: dict[int, OwnedClaim] = {}

    def receive(self, message: Claim | Answered) -> None:
        match message:
            case Claim():
                self._claim(message)
            case Answered():
                self._answers.end(self._claims.pop(message.number), message.kind, message.answer)

    def _claim(self, message: Claim) -> None:
        kept, refused = None, None
        try:
            found = self._answers.claim(message.name, message.body)
        except HTTPFailure as error:
            refused = error.status, str(error), error.code, error.headers
        else:
            if isinstance(found, CachedResponse):
                kept = found
            else:
                self._claims[message.number] = found
        self._send(Claimed(message.number, kept, refused))

    def close(self) -> None:
        while self._claims:
            _, claim = self._claims.popitem()
            self._answers.end(claim)
