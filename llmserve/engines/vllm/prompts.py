"""Encodes waiting prompts together. Written against vLLM 0.25.1, 0.32.0 and 0.33.0.

vLLM's renderer encodes one prompt at a time in its one thread. Each needs a hand-over to the thread
and back, while the event loop holds the interpreter. Of 512 prompts the last one waits for all
others. Here one thread passes all waiting texts to the tokenizer together, which encodes them on
all cores without the interpreter's lock. vLLM renders conversations first, within its own time
limit.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import attrs

from llmserve.engine import EnginePrompt
from llmserve.errors import EngineDead

GONE = "vLLM's engine is not running"
# Maximum number of characters in a batch. A prompt that arrives during a long batch waits for that
# batch, not for the whole queue.
MAX_CHARACTERS = 2**18


@attrs.frozen
class PromptJob:
    """A text, and vLLM's TokenizeParams for it. `pair` is a second text, encoded together with it."""

    text: str
    params: Any
    pair: str | None = None


@attrs.frozen
class Encoded:
    """The result of a job: token ids and the text, and the number of the second text's first token.

    That number is None without a second text, or if the tokenizer does not tell the two apart.
    """

    token_ids: list[int]
    text: str
    second: int | None = None


_Waiting = tuple[PromptJob, "asyncio.Future[Encoded]"]


def engine_input(prompt: EnginePrompt) -> Any:
    """Return the prompt as vLLM's engine takes it."""
    from vllm.inputs import tokens_input

    if prompt.images is not None:
        # A copy, because the prompt may go to another engine if this one dies.
        return {**prompt.images, "cache_salt": prompt.cache_salt} if prompt.cache_salt else dict(prompt.images)
    return tokens_input(list(prompt.token_ids), prompt=prompt.text, cache_salt=prompt.cache_salt)


def can_encode(renderer: Any) -> bool:
    """Whether a tokenizer call alone produces this renderer's prompts.

    This is not so for special tokenizers and models.
    """
    from vllm.renderers.hf import HfRenderer

    tokenizer = renderer.tokenizer
    plain = type(renderer) is HfRenderer and getattr(tokenizer, "is_fast", False)
    return bool(plain and not renderer.model_config.is_multimodal_model and not renderer.model_config.is_encoder_decoder)


class PromptEncoder:
    """Encodes prompts for one renderer, in one event loop."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._waiting: list[_Waiting] = []
        self._busy = False
        self._closed = False

    async def encode(self, job: PromptJob) -> Encoded:
        """Return the tokens. Raises vLLM's error about the job, or EngineDead."""
        if self._closed:
            raise EngineDead(GONE)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Encoded] = loop.create_future()
        self._waiting.append((job, future))
        if not self._busy:
            self._busy = True
            # Jobs that arrive in this turn of the loop are encoded together.
            loop.call_soon(self._begin)
        return await future

    def close(self) -> None:
        """Fail the jobs that wait. The batch in the thread runs to its end."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(EngineDead(GONE))
        self._waiting.clear()

    def _begin(self) -> None:
        batch = [] if self._closed else self._take()
        if not batch:
            self._busy = False
            return
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._encode_all, [job for job, _ in batch])
        work.add_done_callback(partial(self._deliver, batch))

    def _take(self) -> list[_Waiting]:
        """Take jobs from the queue, up to MAX_CHARACTERS, without those whose callers have left."""
        batch, characters = [], 0
        while self._waiting and characters < MAX_CHARACTERS:
            characters += len(self._waiting[0][0].text) + len(self._waiting[0][0].pair or "")
            batch.append(self._waiting.pop(0))
        return [(job, future) for job, future in batch if not future.done()] or (self._take() if self._waiting else [])

    def _deliver(self, batch: list[_Waiting], work: "asyncio.Future[list[Encoded | Exception]]") -> None:
        results = [EngineDead(GONE)] * len(batch) if work.cancelled() else work.result()
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
        self._begin()

    # In the thread

    def _encode_all(self, jobs: list[PromptJob]) -> list[Encoded | Exception]:
        results: dict[int, Encoded | Exception] = {}
        kinds: dict[tuple[Any, ...], list[tuple[int, str]]] = {}
        pairs: dict[int, str] = {index: job.pair for index, job in enumerate(jobs) if job.pair is not None}
        for index, job in enumerate(jobs):
            try:
                text = str(job.params.apply_pre_tokenization(self._renderer.tokenizer, {"prompt": job.text})["prompt"])
                kinds.setdefault((job.pair is None, *job.params.get_encode_kwargs().items()), []).append((index, text))
            except Exception as error:
                results[index] = error
        for (_, *kwargs), found in kinds.items():
            indices = [index for index, _ in found]
            seconds = [pairs[index] for index in indices if index in pairs]
            results |= zip(indices, self._encode([text for _, text in found], seconds, dict(kwargs)), strict=True)
        return [results[index] for index in range(len(jobs))]

    def _encode(self, texts: list[str], pairs: list[str], kwargs: dict[str, Any]) -> list[Encoded | Exception]:
        """Encode texts, each with its second one if there are `pairs`."""
        try:
            if not pairs:
                found = self._renderer.tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, **kwargs)["input_ids"]
                return list(map(Encoded, found, texts))
            both = self._renderer.tokenizer(texts, pairs, return_attention_mask=False, **kwargs)
            kinds = both.get("token_type_ids") or [None] * len(texts)
            return list(map(Encoded, both["input_ids"], texts, map(_second, kinds)))
        except Exception as error:
            # An error of one text must not fail the others.
            if len(texts) == 1:
                return [error]
            return [result for index, text in enumerate(texts) for result in self._encode([text], pairs[index : index + 1], kwargs)]


def _second(kinds: list[int] | None) -> int | None:
    """Return where the ones begin in zeros and ones: there begins the second text."""
    return None if kinds is None else kinds.index(1) if 1 in kinds else len(kinds)
