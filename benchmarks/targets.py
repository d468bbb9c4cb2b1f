"""What is measured: a manager in this process, or any OpenAI-compatible server. Each sends one item and fills in its record."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import aiohttp
import anyio
import attrs
import msgspec

from benchmarks.results import RequestRecord
from benchmarks.workloads import Item
from llmserve import (
    DeadlineExceeded,
    EngineManager,
    GenerationRequest,
    LLMServeError,
    Overloaded,
    Sampling,
    TenantOverloaded,
    TokenStream,
)

# aiohttp's default of 64 KiB stops the reader within one event of a long context; a client must not be what is measured.
READ_BUFFER = 10 * 2**20
CONNECT_SECONDS = 10.0


class TargetError(Exception):
    """The target cannot be measured at all; the message says why."""


class Target(Protocol):
    """Something that answers. `now` gives seconds from the point's start, and `origin` is that start on the monotonic clock."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    async def send(self, item: Item, record: RequestRecord, now: Callable[[], float], origin: float) -> None:
        """One request to its end. Raises nothing that the target did: that is an outcome."""


@attrs.frozen
class InProcess:
    """An `EngineManager`, without any wire."""

    manager: EngineManager
    name: str = "inprocess"

    async def send(self, item: Item, record: RequestRecord, now: Callable[[], float], origin: float) -> None:
        sampling = Sampling(max_tokens=item.max_tokens, ignore_eos=True)
        request = GenerationRequest(item.prompt, sampling=sampling, tenant=item.tenant, priority=item.priority)
        try:
            async with self.manager.stream(request) as stream:
                record.accepted = now()
                async for delta in stream:
                    if delta.token_ids:
                        record.deliveries.append((now(), len(delta.token_ids)))
                _take_timeline(record, stream, origin)
            record.outcome = "ok" if record.completion_tokens == item.max_tokens else "wrong_token_count"
        except Overloaded as error:
            record.outcome = "refused_429" if isinstance(error, TenantOverloaded) else "refused_503"
            record.retry_after, record.detail = error.retry_after, error.reason
        except DeadlineExceeded as error:
            record.outcome, record.detail = "timeout", str(error)
        except LLMServeError as error:
            record.outcome, record.detail = "error", str(error)


def _take_timeline(record: RequestRecord, stream: TokenStream, origin: float) -> None:
    """The engine's own stages, brought to the point's start: on one host its clock is ours."""
    line = stream.timeline
    record.completion_tokens = line.completion_tokens
    for name in ("engine_queued", "engine_scheduled", "engine_first_token", "engine_last_token"):
        reading = getattr(line, name)
        setattr(record, name, None if reading is None else reading - origin)


@attrs.frozen
class HTTP:
    """POST /v1/completions on a server, ours or another's, streamed. Tokens are counted by the server's running usage, where it
    gives one for each chunk; elsewhere a chunk counts as one token, and what the final usage has more goes to the last."""

    session: aiohttp.ClientSession
    model: str
    name: str = "http"

    async def send(self, item: Item, record: RequestRecord, now: Callable[[], float], origin: float) -> None:
        body = {
            "model": self.model,
            "prompt": item.prompt,
            "max_tokens": item.max_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "user": item.tenant,
            "priority": item.priority,
        }
        try:
            async with self.session.post("/v1/completions", data=msgspec.json.encode(body)) as response:
                record.accepted = now()
                if response.status != 200:
                    await _refused(record, response)
                    return
                await self._read(record, response, now)
        except (aiohttp.ClientError, OSError) as error:
            record.outcome, record.detail = "connection", f"{type(error).__name__}: {error}"[:200]
            return
        if record.outcome == "ok" and record.completion_tokens != item.max_tokens:
            record.outcome = "wrong_token_count"

    async def _read(self, record: RequestRecord, response: aiohttp.ClientResponse, now: Callable[[], float]) -> None:
        # Until the stream says that it is done, it was cut off.
        record.outcome = "truncated"
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            at = now()
            if line.startswith(b"data: [DONE]"):
                record.outcome = "ok"
                break
            event = msgspec.json.decode(line[6:])
            if "error" in event:
                record.outcome, record.detail = "error", str(event["error"])[:200]
                return
            _take_event(record, event, at)


def _take_event(record: RequestRecord, event: dict[str, Any], at: float) -> None:
    usage, choices = event.get("usage"), event.get("choices")
    counted = usage["completion_tokens"] - record.completion_tokens if usage else None
    if choices:
        count = 1 if counted is None else counted
        if count:
            record.deliveries.append((at, count))
            record.completion_tokens += count
    elif counted and record.deliveries:
        time, count = record.deliveries[-1]
        record.deliveries[-1] = (time, count + counted)
        record.completion_tokens += counted


async def _refused(record: RequestRecord, response: aiohttp.ClientResponse) -> None:
    record.detail = (await response.text())[:200]
    match response.status:
        case 429:
            record.outcome = "refused_429"
        case 503:
            record.outcome = "refused_503"
        case 408 | 504:
            record.outcome = "timeout"
        case _:
            record.outcome = "error"
    try:
        record.retry_after = float(response.headers.get("Retry-After", ""))
    except ValueError:
        record.retry_after = None


@asynccontextmanager
async def open_http(url: str, model: str | None) -> AsyncIterator[HTTP]:
    """A server that answers; its own first model unless one is named. Raises TargetError."""
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    try:
        session = aiohttp.ClientSession(url, timeout=timeout, connector=connector, read_bufsize=READ_BUFFER)
    except ValueError as error:
        raise TargetError(f"{url} is no URL of a server: {error}") from error
    async with session:
        try:
            async with session.get("/v1/models") as response:
                if response.status != 200:
                    raise TargetError(f"{url}/v1/models answers {response.status}")
                models = [card["id"] for card in (await response.json())["data"]]
        except (aiohttp.ClientError, OSError, KeyError, ValueError) as error:
            raise TargetError(f"{url} cannot be reached: {error}") from error
        if model is not None and model not in models:
            raise TargetError(f"{url} has no model {model!r}, but {', '.join(models)}")
        yield HTTP(session, model or models[0])


async def with_patience(target: Target, item: Item, record: RequestRecord, now: Callable[[], float], origin: float) -> None:
    """Send, as a client that may leave before the end."""
    seconds = item.cancel_after
    with anyio.move_on_after(seconds) as scope:
        await target.send(item, record, now, origin)
    if scope.cancelled_caught:
        record.outcome, record.detail = "cancelled", f"the client left after {seconds:g} s"
    record.finished = now()
