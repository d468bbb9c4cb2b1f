"""What stands before the replicas and outlives them: it holds a request until something of its answer has been sent, and so can ask
another replica when one refuses, or dies."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs

from frontends.access.control import Access
from frontends.cluster.intake import Intake
from frontends.cluster.relay import BEAT, Message, RelayedRequest, ReplicaAccepted, ResponseHead
from frontends.openai import sse
from frontends.openai.errors import describe
from llmserve import EngineRestarted, LLMServeError, Unavailable
from llmserve.admission import Refusal
from llmserve.admission.retry_after import RETRY_AFTER

# A replica says at once that it has taken a request, before it is admitted there; one whose host cannot be reached says nothing, and no
# replica at all says nothing for longer.
TAKE_SECONDS = 2.5
PATIENCE_SECONDS = RETRY_AFTER["no_replica"]
# Every replica says something every 2 s. Ray notices after a minute that a host cannot be reached (measured with a link taken down).
SILENT_SECONDS = 10.0
# A request that was in so many replicas when they died may be what kills them.
MAX_LOST = 3
# Of a body, in bytes.
SMALL = 2**20
RETRY_MS = "Retry-After-Ms"
REFUSED = 503


class Lost(Exception):
    """The replica that had the request is gone, or cannot be reached."""


class ReplicaRefused(Exception):
    """No replica has said that it has the request."""


class Ingress:
    """`replicas` is a handle of the deployment of `Replica`s. `api_keys` is the file of keys, as on every host; `max_incomplete` is as
    `build_app`'s. Raises ConfigurationError."""

    def __init__(self, replicas: Any, api_keys: Path | None = None, max_incomplete: int | None = None) -> None:
        self._intake = Intake(Access.of_keys(api_keys), max_incomplete)
        answer = replicas.options(method_name="answer", stream=True)
        # gRPC from process to process takes less than Ray's object store (first tokens at 32 streams after 170 ms instead of 241), but no
        # message above 4 MiB.
        self._small, self._large = answer.options(_by_reference=False), answer

    async def __call__(self, request: Any) -> Any:
        """Starlette's request, and its response. Ray Serve cancels this, or the response's body, when the client has gone."""
        from starlette.responses import Response, StreamingResponse

        try:
            answer = await self._ask(await self._intake.read(request))
        except LLMServeError as error:
            status, body, headers = describe(error)
            return Response(sse.encode(body), status, headers, "application/json")
        headers = dict(answer.head.headers)
        if answer.head.is_events:
            return StreamingResponse(answer.events(), answer.head.status, headers)
        return Response(answer.body, answer.head.status, headers)

    async def _ask(self, asked: RelayedRequest) -> "Answer":
        """The first answer that is no refusal, of two replicas at most; else the refusal that says to come back sooner.

        Raises Unavailable where no replica takes it, EngineRestarted where too many have died of it.
        """
        refusal: Answer | None = None
        lost = 0
        clock = asyncio.get_running_loop().time
        patience = clock() + PATIENCE_SECONDS
        while lost < MAX_LOST:
            replicas = self._small if len(asked.body) < SMALL else self._large
            answer = Answer(replicas.remote(asked, () if refusal is None else (refusal.replica,)))
            try:
                await answer.begin()
            except ReplicaRefused:
                if clock() < patience:
                    continue
                break
            except Lost:
                lost += 1
                continue
            if answer.head.status != REFUSED:
                return answer
            if refusal is not None:
                return min(refusal, answer, key=lambda one: one.retry_after)
            refusal = answer
        if refusal is not None:
            return refusal
        if lost < MAX_LOST:
            raise Unavailable("no replica takes requests", retry_after=PATIENCE_SECONDS, reason=Refusal.STARTING)
        raise EngineRestarted(f"{MAX_LOST} replicas have ended with this request in them")


@attrs.define(eq=False)
class Answer:
    """One replica's, from its beginning. `body` is the whole of it, but of events the first ones alone."""

    _messages: Any
    replica: str = ""
    head: ResponseHead = attrs.field(factory=lambda: ResponseHead(REFUSED, ()))
    body: bytes = b""

    async def begin(self) -> None:
        """Wait for what there is to send. Raises ReplicaRefused, Lost.

        A replica that accepts a request and sends nothing was asked to refuse it.
        """
        try:
            try:
                async with asyncio.timeout(TAKE_SECONDS):
                    taken = await self._next()
            except TimeoutError:
                raise ReplicaRefused from None
            assert isinstance(taken, ReplicaAccepted)
            self.replica = taken.replica
            head = await self._next()
            if isinstance(head, ResponseHead):
                self.head = head
                await self._read_body()
        except BaseException:
            self._messages.cancel()
            raise

    @property
    def retry_after(self) -> float:
        """Seconds, of a refusal."""
        value = self.head.get(RETRY_MS)
        return float(value) / 1000 if value else float("inf")

    async def events(self) -> AsyncIterator[bytes]:
        """To their end; the last one says so if the replica is gone before that."""
        try:
            yield self.body
            while (chunk := await self._next()) is not None:
                assert isinstance(chunk, bytes)
                yield chunk
        except Lost:
            error = EngineRestarted("the replica that answered has ended before the answer was complete")
            yield sse.event(describe(error)[1]) + sse.DONE
        finally:
            self._messages.cancel()

    async def _read_body(self) -> None:
        parts: list[bytes] = []
        while (chunk := await self._next()) is not None:
            assert isinstance(chunk, bytes)
            parts.append(chunk)
            if self.head.is_events:
                break
        self.body = b"".join(parts)

    async def _next(self) -> Message | None:
        """None at the end. Raises Lost."""
        from ray.exceptions import RayError

        try:
            while True:
                async with asyncio.timeout(SILENT_SECONDS):
                    message: Message = await anext(self._messages)
                if message != BEAT:
                    return message
        except StopAsyncIteration:
            return None
        except (RayError, TimeoutError) as error:
            # Ray has a class for each way in which a replica can be gone; one that fails in its own code is no better.
            raise Lost from error
