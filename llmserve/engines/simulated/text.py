"""The simulated engine's tokenizer, over bytes and a few words, and its seeded answers."""

import codecs
import random
from collections.abc import Mapping, Sequence
from typing import Any

from llmserve.images.parts import text_of
from llmserve.request import MAX_STOP_LENGTH, Sampling, TokenLogprob
from llmserve.structured import StructuredOutputs

WORDS = (
    " the", " a", " of", " to", " and", " in", " is", " it", " that", " queue", " token", " batch", " engine", " waits", " runs", " step",
    " cache", " block", " slow", " fast", " small", " large", " then", " while", " first", " last", " every", " no", ",", ".", "\n", " so",
)  # fmt: skip
BYTES = 256
END = BYTES
FIRST_WORD = END + 1
VOCAB_SIZE = FIRST_WORD + len(WORDS)
# Length in tokens of an answer that no other limit bounds.
ANSWER_LENGTH = (8, 64)


def encode(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def decode(token_ids: Sequence[int]) -> str:
    """Return the text. Invalid UTF-8 becomes replacement characters; the end token is left out."""
    pieces = bytearray()
    for token in token_ids:
        if token < BYTES:
            pieces.append(token)
        elif token >= FIRST_WORD:
            pieces += WORDS[token - FIRST_WORD].encode()
    return pieces.decode(errors="replace")


def render_chat(messages: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"<{message['role']}>{text_of(message.get('content'))}\n" for message in messages) + "<assistant>"


class Writer:
    """Writes one answer, token by token.

    The same seed, prompt and sampling give the same answer, and so does temperature 0. With `form`,
    a choice of one text, the answer is that text.
    """

    def __init__(self, seed: str, prompt: tuple[int, ...], sampling: Sampling, nonce: int, form: StructuredOutputs | None = None) -> None:
        if sampling.temperature == 0:
            source = "greedy"
        elif sampling.seed is not None:
            source = f"seed {sampling.seed}"
        else:
            source = f"nonce {nonce}"
        self._random = random.Random(f"{seed} {source} {hash(prompt)}")
        self._prompt = prompt
        self._sampling = sampling
        self._length = self._random.randint(*ANSWER_LENGTH)
        self._written = 0
        self._form = None if form is None else encode(form.choices[0])
        self._tail = ""
        # Holds the bytes of an incomplete character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def text(self, token: int) -> str:
        """Return the text that the token adds."""
        return self._decoder.decode(bytes([token])) if token < BYTES else decode([token])

    def next(self) -> int:
        self._written += 1
        if self._form is not None:
            return self._form[self._written - 1] if self._written <= len(self._form) else END
        sampling = self._sampling
        if sampling.allowed_token_ids is not None or sampling.bad_words:
            return self._choose(sampling)
        if self._is_over(sampling):
            return END
        return FIRST_WORD + self._random.randrange(len(WORDS))

    def _is_over(self, sampling: Sampling) -> bool:
        return self._written > max(self._length, sampling.min_tokens) and not sampling.ignore_eos

    def _choose(self, sampling: Sampling) -> int:
        """Choose an allowed token that completes no bad word, or the end token if there is none."""
        allowed = sampling.allowed_token_ids or range(FIRST_WORD, VOCAB_SIZE)
        if self._is_over(sampling) and (sampling.allowed_token_ids is None or END in allowed):
            return END
        choices = [token for token in allowed if token != END and not self._completes(token, sampling.bad_words)]
        if not choices:
            return END
        token = self._random.choice(choices)
        self._tail = (self._tail + decode([token]))[-MAX_STOP_LENGTH:]
        return token

    def _completes(self, token: int, words: tuple[str, ...]) -> bool:
        text = self._tail + decode([token])
        return any(word in text for word in words)

    def logprobs(self, token: int) -> TokenLogprob | None:
        """Return invented log probabilities in the right shape; None if the request has none."""
        return None if self._sampling.logprobs is None else self._logprob(token, self._sampling.logprobs)

    def prompt_logprobs(self) -> tuple[TokenLogprob, ...] | None:
        """Return the same for the prompt; its first token has none, because nothing predicts it."""
        count = self._sampling.prompt_logprobs
        if count is None:
            return None
        first = TokenLogprob(self._prompt[0], decode(self._prompt[:1]), None)
        return (first, *(self._logprob(token, count) for token in self._prompt[1:]))

    def _logprob(self, token: int, count: int) -> TokenLogprob:
        alternatives = [token, *(FIRST_WORD + self._random.randrange(len(WORDS)) for _ in range(count - 1))][:count]
        top = tuple(TokenLogprob(other, decode([other]), -0.1 - rank) for rank, other in enumerate(alternatives))
        return TokenLogprob(token, decode([token]), -0.1, top)


class StopWatcher:
    """Finds stop strings, and holds back text that may become one."""

    def __init__(self, sampling: Sampling) -> None:
        self._stops = sampling.stop
        self._include = sampling.include_stop
        self._keep = max((len(stop) for stop in self._stops), default=1) - 1
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Return the text to send, and the stop string that ended it, or None."""
        self._held += text
        found = [(self._held.index(stop), stop) for stop in self._stops if stop in self._held]
        if found:
            start, stop = min(found)
            return self._held[: start + len(stop) * self._include], stop
        cut = len(self._held) - self._keep
        if cut <= 0:
            return "", None
        out, self._held = self._held[:cut], self._held[cut:]
        return out, None

    def flush(self) -> str:
        out, self._held = self._held, ""
        return out
