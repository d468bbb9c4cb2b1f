"""The ingress, which relays requests to replicas and outlives them.

It keeps a request until a part of the answer has been sent. Until then it can try another replica
when one refuses or dies.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs

from frontends.access.control import Access
from frontends.cluster.intake import Intake
from frontends.cluster.relay import BEAT, Message, RelayedRequest, ReplicaAccepted, ResponseHead
from frontends.http.errors import described
from frontends.openai import sse
from frontends.openai.errors import describe
from llmserve import EngineRestarted, LLMServeError, Unavailable
from llmserve.admission import Refusal
from llmserve.admission.retry_after import RETRY_AFTER

# Maximum seconds until a replica accepts a request, which it does immediately, before admission. A
# replica on an unreachable host stays silent. PATIENCE_SECONDS is the limit for all attempts.
TAKE_SECONDS = 2.5
PATIENCE_SECONDS = RETRY_AFTER["no_replica"]
# Seconds of silence after which a replica counts as lost. Every replica sends a message every 2 s.
# Ray detects an unreachable host only after a minute (measured with a link taken down).
SILENT_SECONDS = 10.0
# Maximum number of replicas that may die with a request, which may be the cause of their death.
MAX_LOST = 3
# Maximum size in bytes of a body that is sent by gRPC.
SMALL = 2**20
RETRY_MS = "Retry-After-Ms"
REFUSED = 503


class Lost(Exception):
    """The replica with the request has died or is unreachable."""


class ReplicaRefused(Exception):
    """No replica has accepted the request in time."""


class Ingress:
    """The ingress. Raises ConfigurationError.

    Args:
        replicas: a handle of the deployment of `Replica`.
        api_keys: the file of keys, which exists on every host.
        max_incomplete: as for `build_app`.
    """

    def __init__(self, replicas: Any, api_keys: Path | None = None, max_incomplete: int | None = None) -> None:
        self._intake = Intake(Access.of_keys(api_keys), max_incomplete)
        answer = replicas.options(method_name="answer", stream=True)
        # gRPC between processes is faster than Ray's object store (time to first token at 32
        # streams: 170 ms instead of 241), but its messages are limited to 4 MiB.
        self._small, self._large = answer.options(_by_reference=False), answer

    async def __call__(self, request: Any) -> Any:
        """Answer a Starlette request.

        Ray Serve cancels this call or the response's body when the client has gone.
        """
        from starlette.responses import Response, StreamingResponse

        try:
            answer = await self._ask(await self._intake.read(request))
        except LLMServeError as error:
            status, body, headers = described(error, request.scope["path"])
            return Response(sse.encode(body), status, headers, "application/json")
        headers = dict(answer.head.headers)
        if answer.head.is_events:
            return StreamingResponse(answer.events(), answer.head.status, headers)
        return Response(answer.body, answer.head.status, headers)

    async def _ask(self, asked: RelayedRequest) -> "Answer":
        """Return the first answer that is not a refusal, from at most two replicas.

        If both refuse, return the refusal with the shorter Retry-After. Raises Unavailable if no
        replica accepts the request, and EngineRestarted if too many have died with it.
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
            raise Unavailable("no replica accepts requests", retry_after=PATIENCE_SECONDS, reason=Refusal.STARTING)
        raise EngineRestarted(f"{MAX_LOST} replicas have died while they processed this request")


@attrs.define(eq=False)
class Answer:
    """One replica's answer. `body` is the complete body, or the first events of a stream."""

    _messages: Any
    replica: str = ""
    head: ResponseHead = attrs.field(factory=lambda: ResponseHead(REFUSED, ()))
    body: bytes = b""

    async def begin(self) -> None:
        """Wait for the head, and for the body or its first events. Raises ReplicaRefused, Lost.

        A replica that this request should avoid accepts it and then sends nothing.
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
        """The seconds of a refusal's Retry-After."""
        value = self.head.get(RETRY_MS)
        return float(value) / 1000 if value else float("inf")

    async def events(self) -> AsyncIterator[bytes]:
        """Yield all events; the last one is an error if the replica dies before the end."""
        try:
            yield self.body
            while (chunk := await self._next()) is not None:
                assert isinstance(chunk, bytes)
                yield chunk
        except Lost:
            error = EngineRestarted("the replica died before the answer was complete")
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
        """Return the next message, or None at the end. Raises Lost."""
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
            # Ray has several classes for lost replicas. A failure in a replica's code counts as
            # lost too.
            raise Lost from error
