"""Any OpenAI-compatible server: streamed completions or chat completions."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp
import anyio
import attrs
import msgspec

from benchmarks.recording.results import RequestRecord
from benchmarks.targets.answers import Answer, message_of
from benchmarks.targets.server import Server
from benchmarks.targets.tokenizer import Vocabulary
from benchmarks.workload.requests import Item

# Time for the end of an HTTP message after the end of its stream. Without that end the connection
# could not be used again, and the next request would wait for a new one.
END_SECONDS = 1.0
# vLLM's server answers 400 without this header.
HEADERS = {"Content-Type": "application/json"}


@attrs.frozen
class HTTP:
    """One server's model; the vocabulary makes the text of prompts that are not token ids."""

    session: aiohttp.ClientSession
    server: Server
    model: str
    vocabulary: Vocabulary = attrs.field(factory=Vocabulary)

    async def send(self, item: Item, record: RequestRecord, now: Callable[[], float], origin: float) -> tuple[int, ...]:
        answer = Answer(record)
        path = self.server.options.path
        try:
            # A redirection would become a GET, or another server would be measured.
            async with self.session.post(path, data=self._body(item), headers=HEADERS, allow_redirects=False) as response:
                record.accepted = now()
                record.request_id = response.headers.get("X-Request-Id", "")
                if response.status == 200:
                    await _read(answer, response, now)
                    answer.end(item, now(), self.vocabulary.count)
                else:
                    await _refused(record, response)
        except (aiohttp.ClientError, OSError) as error:
            record.outcome, record.detail = "connection", f"{type(error).__name__}: {error}"[:200]
        finally:
            answer.merge()
        if record.detail:
            record.detail = self.server.hide(record.detail)
        return tuple(answer.token_ids)

    def _body(self, item: Item) -> bytes:
        body = {
            "model": item.adapter or self.model,
            **self._prompt(item),
            "max_tokens": item.max_tokens,
            # Greedy, because a model with random weights would sample ids that its tokenizer does
            # not have.
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "user": item.tenant,
        }
        # Servers that do not know these fields refuse them.
        if not item.natural:
            body["ignore_eos"] = True
        if item.priority:
            body["priority"] = item.priority
        extra = dict(self.server.options.extra_body)
        return msgspec.json.encode({name: value for name, value in (body | extra).items() if name not in extra or value is not None})

    def _prompt(self, item: Item) -> dict[str, Any]:
        prompts = self.server.options.prompts
        if prompts == "ids" and not item.text:
            return {"prompt": item.prompt}
        text = item.text or self.vocabulary.text(item.prompt)
        return {"messages": [{"role": "user", "content": text}]} if prompts == "chat" else {"prompt": text}


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
