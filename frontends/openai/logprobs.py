"""Logprobs in OpenAI's formats for completions and chat, and in vLLM's for prompts."""

from collections.abc import Callable, Iterator, Sequence

import msgspec

from frontends.net.turns import WorkQueue
from llmserve import TokenLogprob
from llmserve.validation.results import IMPOSSIBLE

# Tokens per piece of work: encoding 32 tokens with 20 alternatives each takes 2 to 3 ms.
PIECE = 32


class TextLogprobs(msgspec.Struct):
    """Logprobs of completions: parallel lists with one entry per token.

    `text_offset` counts characters from the start of the text.
    """

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


class RankedLogprob(msgspec.Struct, gc=False):
    """A logprob in vLLM's `prompt_logprobs`.

    `rank` counts from 1; it is null for a token that is not among the requested alternatives.
    """

    logprob: float
    rank: int | None
    decoded_token: str


def by_id(entry: TokenLogprob) -> TokenLogprob:
    """Return the entry with vLLM's `token_id:N` instead of the token's text."""
    return msgspec.structs.replace(entry, token=f"token_id:{entry.token_id}", top=tuple(map(by_id, entry.top)))


def pieces(*sequences: Sequence[TokenLogprob]) -> Iterator[Sequence[TokenLogprob]]:
    """Yield the entries in pieces; one empty piece if there are no entries."""
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
    """Return the logprobs of the alternatives by text, the chosen token's first, as in vLLM.

    Of several tokens with the same text, the most likely one counts.
    """
    found: dict[str, float | None] = {}
    for other in (*entry.top, entry):
        found.setdefault(other.token, _finite(other.logprob))
    return {entry.token: found.pop(entry.token), **found}


def chat_logprobs(entries: Sequence[TokenLogprob]) -> ChatLogprobs:
    def one(entry: TokenLogprob) -> ChatLogprob:
        return ChatLogprob(entry.token, _finite(entry.logprob), list(entry.token.encode()), [one(other) for other in entry.top])

    return ChatLogprobs([one(entry) for entry in entries])


def ranked_logprobs(entries: Sequence[TokenLogprob]) -> list[dict[str, RankedLogprob] | None]:
    """Return a prompt's logprobs, with alternatives by token id.

    The first token has null, because nothing predicts it.
    """
    return [None if entry.logprob is None else _ranked(entry) for entry in entries]


def _ranked(entry: TokenLogprob) -> dict[str, RankedLogprob]:
    found = {str(entry.token_id): RankedLogprob(max(entry.logprob or 0.0, IMPOSSIBLE), None, entry.token)}
    for rank, other in enumerate(entry.top, 1):
        found[str(other.token_id)] = RankedLogprob(max(other.logprob or 0.0, IMPOSSIBLE), rank, other.token)
    return found


def response_logprobs(entries: Sequence[TokenLogprob]) -> bytes:
    """Return the logprobs of a response as a list in JSON."""
    return msgspec.json.encode(chat_logprobs(entries).content)


async def write_prompt_logprobs(entries: Sequence[TokenLogprob], turns: WorkQueue) -> bytes:
    return await write_list(entries, lambda piece: msgspec.json.encode(ranked_logprobs(piece)), turns)


async def write_list(entries: Sequence[TokenLogprob], encode: Callable[[Sequence[TokenLogprob]], bytes], turns: WorkQueue) -> bytes:
    """Return the JSON of a list, of which `encode` makes each piece as a list."""
    left = pieces(entries)
    written: list[bytes] = []

    def write() -> bool:
        piece = next(left, None)
        if piece:
            written.append(encode(piece)[1:-1])
        return piece is not None

    await in_pieces(write, len(entries), turns)
    return b"[" + b",".join(written) + b"]"


async def in_pieces(write: Callable[[], bool], entries: int, turns: WorkQueue) -> None:
    """Call `write` until it returns False, with pauses if there are many entries."""
    while write() if entries <= PIECE else await turns.run(write):
        pass
