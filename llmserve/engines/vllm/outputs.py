"""Converts vLLM's outputs and errors to llmserve's own.

Written against vLLM 0.25.1 and 0.32.0, the errors also against 0.33.0.
"""

from collections.abc import Callable, Mapping
from typing import Any

from llmserve.admission import Refusal
from llmserve.admission.retry_after import RETRY_AFTER
from llmserve.engine import EngineTimings, Sink
from llmserve.errors import EngineDead, EngineError, InvalidRequest, Overloaded, Unavailable
from llmserve.request import Delta, Sampling, TokenLogprob
from llmserve.structured import FIELD


class Receiver:
    """Converts one request's outputs to deltas as vLLM makes them.

    It calls `dropped` if vLLM aborts the request on its own, because vLLM does not report that to
    the sink.
    """

    def __init__(
        self,
        request_id: str,
        sink: Sink,
        sampling: Sampling,
        open_requests: set[str],
        decode: Callable[[list[int]], str],
        dropped: Callable[[Sink], None],
    ) -> None:
        self._id = request_id
        # All tokens so far of a constrained request, for `VLLMEngine.suspects`.
        self.token_ids: list[int] | None = None
        self.detokenize = sampling.detokenize
        self._sink = sink
        self._sampling = sampling
        self._open = open_requests
        self._decode = decode
        self._dropped = dropped

    def put(self, output: Any) -> None:
        """Replace the collector's `put`. vLLM passes an exception to it when the engine dies."""
        # An aborted request gets a last, empty output, for which no caller waits.
        if self._id not in self._open:
            return
        if isinstance(output, Exception):
            self._open.discard(self._id)
            self._sink.fail(translate(output))
            return
        (part,) = output.outputs
        if self.token_ids is not None:
            self.token_ids += part.token_ids
        reason = part.finish_reason
        if reason is not None:
            self._open.discard(self._id)
            if reason == "abort":
                self._dropped(self._sink)
                return
            if reason not in ("stop", "length"):
                self._sink.fail(self._failure(reason))
                return
        logprobs, prompt_logprobs = self._logprobs(part.logprobs, part.token_ids), self._prompt_logprobs(output)
        delta = Delta(part.text, tuple(part.token_ids), reason, part.stop_reason, logprobs, prompt_logprobs)
        self._sink.put(delta, None if reason is None else _timings(output))

    def _failure(self, reason: str) -> Exception:
        if reason == "error" and self._sampling.structured_outputs is not None:
            # The grammar has a rule that leads nowhere. This shows only when an answer reaches it.
            return InvalidRequest(f"{FIELD}: no token can continue the answer within this constraint", FIELD)
        return EngineError(f"the engine ended the request: {reason}")

    def take(self, text: str, token_ids: list[int]) -> None:
        """Take tokens from the middle of an answer, with their text."""
        if self._id in self._open:
            if self.token_ids is not None:
                self.token_ids += token_ids
            self._sink.put(Delta(text, tuple(token_ids)))

    def _logprobs(self, entries: Any, token_ids: Any) -> tuple[TokenLogprob, ...] | None:
        if entries is None:
            return None
        count = self._sampling.logprobs or 0
        return tuple(_logprob(token, entry, count) for token, entry in zip(token_ids, entries, strict=False))

    def _prompt_logprobs(self, output: Any) -> tuple[TokenLogprob, ...] | None:
        if self._sampling.prompt_logprobs is None or not output.prompt_logprobs:
            return None
        count = self._sampling.prompt_logprobs
        pairs = zip(output.prompt_token_ids, output.prompt_logprobs, strict=False)
        # Nothing predicts the first token, so vLLM has neither an entry for it nor its text.
        return tuple(_logprob(token, entry, count) if entry else TokenLogprob(token, self._decode([token]), None) for token, entry in pairs)


def _timings(output: Any) -> EngineTimings:
    stats, cached = output.metrics, output.num_cached_tokens or 0
    if stats is None:
        return EngineTimings(cached_tokens=cached)
    return EngineTimings(
        queued=stats.queued_ts or None,
        scheduled=stats.scheduled_ts or None,
        first_token=stats.first_token_ts or None,
        last_token=stats.last_token_ts or None,
        cached_tokens=cached,
    )


def _logprob(token: int, entry: Mapping[int, Any], count: int) -> TokenLogprob:
    """Convert one entry. The chosen token in it is an alternative only if its rank allows that."""
    ranked = sorted((value.rank or 0, other) for other, value in entry.items())
    top = tuple(TokenLogprob(other, entry[other].decoded_token or "", entry[other].logprob) for rank, other in ranked if rank <= count)
    return TokenLogprob(token, entry[token].decoded_token or "", entry[token].logprob, top)


def translate(error: Exception) -> Exception:
    """Convert vLLM's error by its class name; most of these classes are not in every version."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "EngineDeadError" in names:
        return EngineDead("vLLM's engine process died; its own log says why")
    if "GracefulHTTPError" in names:
        return Overloaded(f"vLLM's own limit: {brief(error)}", retry_after=RETRY_AFTER[Refusal.QUEUE_FULL], reason=Refusal.QUEUE_FULL)
    if "RetryableRequestError" in names:
        # Of the requests that are served here, vLLM 0.33 refuses only those to a paused engine in
        # this way.
        words = f"the engine accepts no requests now: {brief(error)}"
        return Unavailable(words, retry_after=RETRY_AFTER[Refusal.PAUSED], reason=Refusal.PAUSED)
    if isinstance(error, ValueError) or "VLLMClientError" in names:
        return InvalidRequest(brief(error), getattr(error, "parameter", None))
    return EngineError(f"the engine failed the request: {brief(error)}")


def brief(error: Exception) -> str:
    """Return an error's text, shortened for an answer."""
    return " ".join(str(error).split())[:300]
