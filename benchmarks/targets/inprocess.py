"""An `EngineManager` in the generator's process, or a client with the same `stream()`.

A manager in the same process needs no wire and no copy, and it reads the same clock.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import attrs

from benchmarks.recording.results import RequestRecord
from benchmarks.workload.requests import Item
from llmserve import (
    DeadlineExceeded,
    GenerationRequest,
    LLMServeError,
    Overloaded,
    Sampling,
    TenantOverloaded,
    Timeline,
    TokenStream,
)


class Streams(Protocol):
    """`EngineManager`, or `SocketClient`."""

    def stream(self, request: GenerationRequest, /) -> AbstractAsyncContextManager[TokenStream]: ...


@attrs.frozen
class InProcess:
    manager: Streams

    async def send(self, item: Item, record: RequestRecord, now: Callable[[], float], origin: float) -> tuple[int, ...]:
        sampling = Sampling(max_tokens=item.max_tokens, temperature=0, ignore_eos=not item.natural)
        adapter = item.adapter or None
        request = GenerationRequest(
            item.text or item.prompt, sampling=sampling, tenant=item.tenant, priority=item.priority, adapter=adapter
        )
        record.request_id = request.request_id
        answer: list[int] = []
        deliveries = record.deliveries
        try:
            async with self.manager.stream(request) as stream:
                record.accepted = now()
                # Over a wire the server assigns its own id.
                record.request_id = stream.request_id
                async for delta in stream:
                    if delta.token_ids:
                        deliveries.append((now(), len(delta.token_ids)))
                        answer += delta.token_ids
                take_timeline(record, stream.timeline, origin)
            record.outcome = "ok" if item.natural or len(answer) == item.max_tokens else "wrong_token_count"
        except Overloaded as error:
            record.outcome = "refused_429" if isinstance(error, TenantOverloaded) else "refused_503"
            record.retry_after, record.detail = error.retry_after, error.reason
        except DeadlineExceeded as error:
            record.outcome, record.detail = "timeout", str(error)
        except LLMServeError as error:
            record.outcome, record.detail = "error", str(error)
        finally:
            record.completion_tokens = len(answer)
        return tuple(answer)


def take_timeline(record: RequestRecord, line: Timeline, origin: float) -> None:
    """Copy the stages of the manager and the engine, relative to the point's start.

    On one host, their clock is this process's.
    """
    for name in ("submitted", "engine_queued", "engine_scheduled", "engine_first_token", "engine_last_token"):
        reading = getattr(line, name)
        setattr(record, name, None if reading is None else reading - origin)
