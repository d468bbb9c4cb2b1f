"""Merges unread deltas into one. Adding a delta has a constant cost in time and in memory."""

from array import array
from collections.abc import Sequence

from llmserve.lifecycle.logprobs import PackedLogprobs
from llmserve.request import Delta, TokenLogprob

# Number of texts to join at a time: a string for each token would take fifty bytes more than the
# token's text.
JOINED = 64


class DeltaBuffer:
    """Starts with one delta; `whole()` returns all deltas as one, without loss."""

    __slots__ = ("_joined", "_last", "_logprobs", "_prompt_logprobs", "_texts", "_token_ids")

    def __init__(self, first: Delta) -> None:
        self._joined: list[str] = []
        self._texts: list[str] = []
        self._token_ids = array("q")
        self._logprobs: PackedLogprobs | None = None
        self._prompt_logprobs: Sequence[TokenLogprob] | None = None
        self.add(first)

    def add(self, delta: Delta) -> None:
        self._last = delta
        self._token_ids.extend(delta.token_ids)
        self._texts.append(delta.text)
        if len(self._texts) == JOINED:
            self._joined.append("".join(self._texts))
            self._texts.clear()
        if delta.logprobs is not None:
            if self._logprobs is None:
                self._logprobs = PackedLogprobs()
            self._logprobs.extend(delta.logprobs)
        if delta.prompt_logprobs and not self._prompt_logprobs:
            self._prompt_logprobs = PackedLogprobs(delta.prompt_logprobs)

    def whole(self) -> Delta:
        """Return all deltas as one, with the end of the last delta."""
        last = self._last
        return Delta(
            "".join([*self._joined, *self._texts]),
            tuple(self._token_ids),
            last.finish_reason,
            last.stop_reason,
            self._logprobs,
            self._prompt_logprobs,
        )
