"""The simulated engine's calls about its vocabulary."""

from typing import Any

from llmserve.engines.simulated.text import VOCAB_SIZE, decode
from llmserve.errors import InvalidRequest


class Vocabulary:
    """Each byte is a token."""

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        if any(not 0 <= token < VOCAB_SIZE for token in token_ids):
            raise InvalidRequest(f"a token id is outside the vocabulary of {VOCAB_SIZE}", "tokens")
        return decode(token_ids)

    async def token_strings(self, token_ids: tuple[int, ...]) -> list[str]:
        return [await self.detokenize((token,)) for token in token_ids]

    async def tokenizer_info(self) -> dict[str, Any]:
        return {"tokenizer_class": "simulated"}
