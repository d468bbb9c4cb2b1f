"""The manager's calls to the engine's tokenizer alone, without a request."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from llmserve.engine import Engine, EnginePrompt, KnowsVocabulary
from llmserve.errors import InvalidRequest
from llmserve.lifecycle.model_limits import check_images, truncated
from llmserve.lifecycle.open_request import check_type
from llmserve.request import GenerationRequest


class Tokenization(ABC):
    """A subclass chooses the engine. Its queue for the tokenizer is bounded."""

    async def tokenize(self, request: GenerationRequest) -> EnginePrompt:
        """Return the prompt as the engine would get it. Raises InvalidRequest or Overloaded."""
        check_type(request)
        async with self._tokenizer() as engine:
            check_images(request, engine.info)
            return truncated(request, await engine.tokenize(request), engine.info)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of the tokens. Raises InvalidRequest or Overloaded."""
        async with self._tokenizer() as engine:
            return await engine.detokenize(tuple(token_ids))

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """Return the vocabulary's own string of each token. Raises as `tokenizer_info`."""
        async with self._tokenizer() as engine:
            return await _vocabulary(engine, "return_token_strs").token_strings(tuple(token_ids))

    async def tokenizer_info(self) -> dict[str, Any]:
        """Return the tokenizer's settings, as plain values that JSON has.

        Raises InvalidRequest if the engine does not report them, and Overloaded.
        """
        async with self._tokenizer() as engine:
            return await _vocabulary(engine, "tokenizer_info").tokenizer_info()

    @abstractmethod
    def _tokenizer(self) -> AbstractAsyncContextManager[Engine]:
        """Hold a place in the queue for the tokenizer of an engine that is up."""


def _vocabulary(engine: Engine, field: str) -> KnowsVocabulary:
    if not isinstance(engine, KnowsVocabulary):
        raise InvalidRequest(f"{field} is not supported: the engine {engine.info.name} does not report its vocabulary", field)
    return engine
