"""Any OpenAI-compatible server: streamed POST /v1/completions or /v1/chat/completions.

Tokens are counted by the usage in each chunk, where the server sends it. Otherwise a chunk counts
as one token, and the last chunk gets the rest of the final usage.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import aiohttp
import attrs
import msgspec

from benchmarks.recording.results import RequestRecord
from benchmarks.targets.base import TargetError
from benchmarks.workload.requests import Item

# aiohttp's default of 64 KiB stops the reader within one event of a long context, and the client
# would be measured.
READ_BUFFER = 10 * 2**20
CONNECT_SECONDS = 10.0
# vLLM's server answers 400 without this header.
HEADERS = {"Content-Type": "application/json"}

# Words that most tokenisers encode as one token, including the space.
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state", "family")


Prompts = Literal["ids", "text", "chat"]

NO_ERROR = msgspec.Raw(b"null")


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    """The fields that are read of a chunk; decoding only these halves the client's time."""

    choices: list[msgspec.Raw] = []
    usage: _Usage | None = None
    # A union with None would refuse every error, because msgspec accepts only null for a Raw that
    # may be null.
    error: msgspec.Raw = NO_ERROR


_decode = msgspec.json.Decoder(_Event).decode


@attrs.frozen
class HTTP:
    """One server's model; for `text` and `chat`, a prompt is one word per token id."""

    session: aiohttp.ClientSession
    model: str
    prompts: Prompts = "ids"

    async def send(self, item: Item, record: RequestRecord, now: Callable[[], float], origin: float) -> tuple[int, ...]:
        body = {
            "model": self.model,
            **self._prompt(item),
            "max_tokens": item.max_tokens,
            # Greedy, because a model with random weights would sample ids that its tokenizer does
            # not have.
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "user": item.tenant,
            "priority": item.priority,
        }
        try:
            path = "/v1/chat/completions" if self.prompts == "chat" else "/v1/completions"
            async with self.session.post(path, data=msgspec.json.encode(body), headers=HEADERS) as response:
                record.accepted = now()
                record.request_id = response.headers.get("X-Request-Id", "")
                if response.status != 200:
                    await _refused(record, response)
                    return ()
                await self._read(record, response, now)
        except (aiohttp.ClientError, OSError) as error:
            record.outcome, record.detail = "connection", f"{type(error).__name__}: {error}"[:200]
            return ()
        except msgspec.MsgspecError as error:
            record.outcome, record.detail = "error", f"the server sent an invalid event: {error}"[:200]
            return ()
        if record.outcome == "ok" and record.completion_tokens != item.max_tokens:
            record.outcome = "wrong_token_count"
        return ()

    def _prompt(self, item: Item) -> dict[str, Any]:
        if self.prompts == "ids":
            return {"prompt": item.prompt}
        words = " ".join(WORDS[token % len(WORDS)] for token in item.prompt)
        if self.prompts == "text":
            return {"prompt": words}
        return {"messages": [{"role": "user", "content": words}]}

    async def _read(self, record: RequestRecord, response: aiohttp.ClientResponse, now: Callable[[], float]) -> None:
        # A stream without its final event was cut off.
        record.outcome = "truncated"
        rest = b""
        async for chunk in response.content.iter_any():
            at = now()
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    record.outcome = "ok"
                    return
                event = _decode(data)
                if event.error != NO_ERROR:
                    record.outcome, record.detail = "error", bytes(event.error).decode(errors="replace")[:200]
                    return
                _take_event(record, event, at)


def _take_event(record: RequestRecord, event: _Event, at: float) -> None:
    counted = event.usage.completion_tokens - record.completion_tokens if event.usage else None
    if event.choices:
        count = 1 if counted is None else counted
        if count:
            record.deliveries.append((at, count))
            record.completion_tokens += count
    elif counted and record.deliveries:
        time, count = record.deliveries[-1]
        record.deliveries[-1] = (time, count + counted)
        record.completion_tokens += counted


async def _refused(record: RequestRecord, response: aiohttp.ClientResponse) -> None:
    record.detail = f"HTTP {response.status}: {await response.text()}"[:200]
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
async def open_session(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a client session without limits. Raises TargetError for an invalid URL."""
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
    try:
        session = aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0), read_bufsize=READ_BUFFER)
    except ValueError as error:
        raise TargetError(f"{url} is not a valid server URL: {error}") from error
    async with session:
        yield session


async def find_model(url: str, model: str | None) -> str:
    """Return the server's first model, or check the named one. Raises TargetError."""
    async with open_session(url) as session:
        try:
            async with session.get("/v1/models") as response:
                if response.status != 200:
                    raise TargetError(f"{url}/v1/models returns HTTP {response.status}")
                models: list[Any] = [card["id"] for card in (await response.json())["data"]]
        except (aiohttp.ClientError, OSError, KeyError, ValueError, TypeError) as error:
            raise TargetError(f"{url} cannot be reached: {str(error) or type(error).__name__}") from error
    if not models or (model is not None and model not in models):
        raise TargetError(f"{url} does not serve {model!r}; its models: {', '.join(models) or 'none'}")
    return str(model or models[0])


async def is_healthy(url: str) -> bool:
    """Whether the server reports that it accepts requests."""
    async with open_session(url) as session:
        try:
            async with session.get("/health") as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError):
            return False
