"""The fast path for tokens in the middle of an answer. Written against vLLM 0.25.1, 0.32.0, 0.33.0.

For every token of every request vLLM builds a CompletionOutput and a RequestOutput, reads
environment variables, and keeps statistics in several objects. In the middle of an answer all this
contains no more than the token's text and id. Here such a token goes from vLLM's detokeniser
straight to the request's receiver, and vLLM's statistics are updated in place.

vLLM itself processes the first and the last output of a request, and every output that carries more
than tokens. It also processes all outputs of requests with stop strings or logprobs.
"""

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from llmserve.request import Sampling

if TYPE_CHECKING:
    from llmserve.engines.vllm.outputs import Receiver

# The fields of an output that this module reads, and the request's trace headers, which vLLM reads
# only at its end.
READ = ("request_id", "new_token_ids", "trace_headers")


def is_plain(sampling: Sampling) -> bool:
    """Whether the middle of the answer consists only of text and ids."""
    return not sampling.stop and sampling.logprobs is None and sampling.prompt_logprobs is None


@attrs.define
class PathCounts:
    """Tokens on the fast path, and tokens that vLLM processed, since the engine was created."""

    fast: int = 0
    slow: int = 0


class FastPath:
    """Replaces `process_outputs` of one AsyncLLM's output processor."""

    def __init__(self, processor: Any, counts: PathCounts) -> None:
        from vllm.v1.engine import EngineCoreOutput

        # All other fields of the installed version. An output that uses a field unknown to this
        # module is left to vLLM.
        others = [field for field in msgspec.structs.fields(EngineCoreOutput) if field.name not in READ]
        self._others = attrgetter(*(field.name for field in others))
        self._defaults = tuple(field.default for field in others)
        self._states = processor.request_states
        self._process = processor.process_outputs
        self._counts = counts
        processor.process_outputs = self.process_outputs

    @staticmethod
    def open(collector: Any, receiver: "Receiver") -> None:
        """Let a request's tokens take the fast path; vLLM keeps the collector with the request."""
        collector.receiver = receiver

    def process_outputs(self, outputs: list[Any], timestamp: float | None = None, statistics: Any = None, **more: Any) -> Any:
        """Process outputs as vLLM's method does.

        `weight_version` names the weights that made these tokens; vLLM records where in an answer
        it changes.
        """
        states, others, defaults, counts = self._states, self._others, self._defaults, self._counts
        version = more.get("weight_version")
        known = not any(value is not None for name, value in more.items() if name != "weight_version")
        left = []
        # One loop with as few calls as possible, because it runs for every token.
        for output in outputs:
            state = states.get(output.request_id)
            if state is None:
                # vLLM ignores outputs of an aborted request.
                continue
            token_ids, detokenizer = output.new_token_ids, state.detokenizer
            receiver = getattr(state.queue, "receiver", None)
            if (
                receiver is None
                or state.is_prefilling
                or not (known and token_ids and others(output) == defaults)
                # With an interval, vLLM holds tokens back.
                or state.stream_interval != 1
                or not (version is None or ((starts := state.weight_version_starts) and starts[-1][0] == version))
            ):
                left.append(output)
                counts.slow += len(token_ids)
                continue
            counts.fast += len(token_ids)
            text = _decode(detokenizer, token_ids) if receiver.detokenize else _keep(detokenizer, token_ids)
            if statistics is not None:
                _count(statistics, state.stats, len(token_ids), timestamp)
            receiver.take(text, token_ids)
        return self._process(left, timestamp, statistics, **more)


def _decode(detokenizer: Any, token_ids: list[int]) -> str:
    """Do what `update()` and `get_next_output_text()` do without stop strings."""
    text = ""
    for token in token_ids:
        detokenizer.token_ids.append(token)
        text += detokenizer.decode_next(token)
    detokenizer.output_text += text
    detokenizer._last_output_text_offset += len(text)  # noqa: SLF001 - it is how much of `output_text` has been given out
    return text


def _keep(detokenizer: Any, token_ids: list[int]) -> str:
    detokenizer.update(token_ids, False)
    return ""


def _count(statistics: Any, request: Any, count: int, timestamp: float | None) -> None:
    """Do what IterationStats.update_from_output does in the middle of an answer."""
    statistics.num_generation_tokens += count
    request.num_generation_tokens += count
    statistics.inter_token_latencies_iter.append(timestamp - request.last_token_ts)
    request.last_token_ts = timestamp
