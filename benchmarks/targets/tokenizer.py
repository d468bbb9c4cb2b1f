"""Text of a known number of tokens, and the number of tokens of a text, by a model's tokenizer."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from benchmarks.targets.base import TargetError
from llmserve import ConfigurationError
from llmserve.models import resolve

# Words that most tokenisers encode as one token, including the space.
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state", "family")
# How tokenizers mark a token that begins with a space.
SPACES = "Ġ▁"
MIN_WORDS = 50


@attrs.frozen
class Vocabulary:
    """What makes the text of a prompt: words of one token each, with the space before it.

    Attributes:
        count: Counts the tokens of a text; None without a tokenizer.
    """

    words: tuple[str, ...] = WORDS
    count: Callable[[str], int] | None = None

    def text(self, token_ids: tuple[int, ...]) -> str:
        """Return a text with a word for each token id."""
        return " ".join(self.words[token % len(self.words)] for token in token_ids)


def load_vocabulary(model: str | None) -> Vocabulary:
    """Return the vocabulary of a model's tokenizer, or without a model words that need none.

    Raises:
        TargetError: The tokenizer cannot be loaded, or its words have several tokens.
    """
    if model is None:
        return Vocabulary()
    tokenizer = _load(model)

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    known = sorted(token[1:] for token in tokenizer.get_vocab() if token[:1] in SPACES and re.fullmatch("[a-z]{3,}", token[1:]))
    words = tuple(word for word in known if count(f"{word} {word}") == 2)
    if len(words) < MIN_WORDS:
        raise TargetError(f"--tokenizer {model}: only {len(words)} of its words have one token, too few for prompts of a known length")
    return Vocabulary(words, count)


def _load(model: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise TargetError("--tokenizer needs the package tokenizers, which vllm and transformers bring") from error
    try:
        folder = Path(resolve(model))
        return Tokenizer.from_file(str(folder / "tokenizer.json")) if folder.is_dir() else Tokenizer.from_pretrained(model)
    except ConfigurationError as error:
        raise TargetError(f"--tokenizer: {error}") from error
    except Exception as error:
        raise TargetError(f"--tokenizer {model} has no readable tokenizer.json: {error}") from error
