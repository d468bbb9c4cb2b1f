"""Logprobs on OpenAI's wire: those of completions, and those of chat."""

from collections.abc import Iterator, Sequence

import msgspec

from llmserve import TokenLogprob
from llmserve.results import IMPOSSIBLE

# Tokens whose logprobs are written at once: with 20 alternatives each they take some 10 ms.
PIECE = 128


class TextLogprobs(msgspec.Struct):
    """For completions: parallel lists, one entry a token; `text_offset` in characters from the start of the text."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float | None] | None]


class ChatLogprob(msgspec.Struct, gc=False):
    token: str
    logprob: float | None
    bytes: list[int]
    top_logprobs: list["ChatLogprob"] = []


class ChatLogprobs(msgspec.Struct):
    content: list[ChatLogprob]


def by_id(entry: TokenLogprob) -> TokenLogprob:
    """With vLLM's name for a token in place of its text."""
    return msgspec.structs.replace(entry, token=f"token_id:{entry.token_id}", top=tuple(map(by_id, entry.top)))


def pieces(*sequences: Sequence[TokenLogprob]) -> Iterator[Sequence[TokenLogprob]]:
    """At least one piece, which is empty if there are no entries."""
    if not any(sequences):
        yield ()
    for entries in sequences:
        for start in range(0, len(entries), PIECE):
            yield entries[start : start + PIECE]


def text_logprobs(entries: Sequence[TokenLogprob], start: int) -> TextLogprobs:
    answer = TextLogprobs([], [], [], [])
    for entry in entries:
        answer.text_offset.append(start)
        answer.tokens.append(entry.token)
        answer.token_logprobs.append(_finite(entry.logprob))
        answer.top_logprobs.append(_alternatives(entry) if entry.logprob is not None else None)
        start += len(entry.token)
    return answer


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, IMPOSSIBLE)


def _alternatives(entry: TokenLogprob) -> dict[str, float | None]:
    """By their texts, the chosen token among them. Of tokens with one text the most likely counts, which comes first."""
    found: dict[str, float | None] = {}
    for other in (*entry.top, entry):
        found.setdefault(other.token, _finite(other.logprob))
    return found


def chat_logprobs(entries: Sequence[TokenLogprob]) -> ChatLogprobs:
    def one(entry: TokenLogprob) -> ChatLogprob:
        return ChatLogprob(entry.token, _finite(entry.logprob), list(entry.token.encode()), [one(other) for other in entry.top])

    return ChatLogprobs([one(entry) for entry in entries])
