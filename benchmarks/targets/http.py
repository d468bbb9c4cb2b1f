"""Any OpenAI-compatible server: streamed POST /v1/completions or /v1/chat/completions."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

import aiohttp
import anyio
import attrs
import msgspec

from benchmarks.recording.results import RequestRecord
from benchmarks.targets.answers import Answer, message_of
from benchmarks.targets.base import TargetError
from benchmarks.workload.requests import Item

# aiohttp's default of 64 KiB stops the reader within one event of a long context, and the client
# would be measured.
READ_BUFFER = 10 * 2**20
CONNECT_SECONDS = 10.0
# Time for the end of an HTTP message after the end of its stream. Without that end the connection
# could not be used again, and the next request would wait for a new one.
END_SECONDS = 1.0
# vLLM's server answers 400 without this header.
HEADERS = {"Content-Type": "application/json"}

# Words that most tokenisers encode as one token, including the space.
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state", "family")


Prompts = Literal["ids", "text", "chat"]


@attrs.frozen
class HTTP:
    """One server's model; for `text` and `chat`, a prompt is one word per token id."""

    session: aiohttp.ClientSession
    model: str
    prompts: Prompts = "ids"

    async def send(self, item: Item, record: RequestRecord, now: Callable[[], float], origin: float) -> tuple[int, ...]:
        answer = Answer(record)
        try:
            path = "/v1/chat/completions" if self.prompts == "chat" else "/v1/completions"
            # A redirection would become a GET, or another server would be measured.
            async with self.session.post(path, data=self._body(item), headers=HEADERS, allow_redirects=False) as response:
                record.accepted = now()
                record.request_id = response.headers.get("X-Request-Id", "")
                if response.status == 200:
                    await _read(answer, response, now)
                    answer.end(item, now())
                else:
                    await _refused(record, response)
        except (aiohttp.ClientError, OSError) as error:
            record.outcome, record.detail = "connection", f"{type(error).__name__}: {error}"[:200]
        return tuple(answer.token_ids)

    def _body(self, item: Item) -> bytes:
        body = {
            "model": self.model,
            **self._prompt(item),
            "max_tokens": item.max_tokens,
            # Greedy, because a model with random weights would sample ids that its tokenizer does
            # not have.
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "user": item.tenant,
            "priority": item.priority,
        }
        return msgspec.json.encode(body if item.natural else body | {"ignore_eos": True})

    def _prompt(self, item: Item) -> dict[str, Any]:
        if self.prompts == "ids":
            return {"prompt": item.prompt}
        words = " ".join(WORDS[token % len(WORDS)] for token in item.prompt)
        if self.prompts == "text":
            return {"prompt": words}
        return {"messages": [{"role": "user", "content": words}]}


async def _read(answer: Answer, response: aiohttp.ClientResponse, now: Callable[[], float]) -> None:
    content = response.content
    async for received in content.iter_any():
        if answer.feed(received, now()):
            break
    if not content.at_eof():
        with anyio.move_on_after(END_SECONDS), suppress(aiohttp.ClientError, OSError):
            await content.read()


async def _refused(record: RequestRecord, response: aiohttp.ClientResponse) -> None:
    target = f" to {response.headers['Location']}" if "Location" in response.headers else ""
    record.detail = f"HTTP {response.status}{target}: {message_of(await response.read())}"
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
