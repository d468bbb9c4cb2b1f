"""The short way out of vLLM, for a step's tokens that are nothing but tokens. Written against vLLM 0.25.1 and 0.32.0.

For every token of every request vLLM builds a CompletionOutput and a RequestOutput, looks at environment variables, and keeps statistics
in several objects. In the middle of an answer none of that says more than its text and its ids. Here such a token goes from vLLM's
detokeniser straight to the request's receiver, and what vLLM counts of it is counted in place. The first and the last output of a
request, and all of a request with stop strings or logprobs, go vLLM's own way.
"""

from typing import TYPE_CHECKING, Any

from llmserve.request import Sampling

if TYPE_CHECKING:
    from llmserve.engines.vllm_outputs import Receiver


def is_plain(sampling: Sampling) -> bool:
    """Whether the middle of its answer is text and ids and nothing else."""
    return not sampling.stop and sampling.logprobs is None and sampling.prompt_logprobs is None


class ShortWay:
    """Stands before `process_outputs` of one AsyncLLM's output processor."""

    def __init__(self, processor: Any) -> None:
        self._states = processor.request_states
        self._long_way = processor.process_outputs
        # With an interval vLLM holds tokens back, which is its own business.
        if getattr(processor, "stream_interval", 1) == 1:
            processor.process_outputs = self.process_outputs

    @staticmethod
    def open(collector: Any, receiver: "Receiver") -> None:
        """Let a request's tokens take it; vLLM holds the collector for as long as it knows the request."""
        collector.receiver = receiver

    def process_outputs(self, outputs: list[Any], timestamp: float | None = None, statistics: Any = None, **more: Any) -> Any:
        """As vLLM's."""
        others = []
        plain = not any(value is not None for value in more.values())
        for output in outputs:
            state = self._states.get(output.request_id)
            receiver = getattr(state.queue, "receiver", None) if state is not None else None
            if receiver is None or state.is_prefilling or not (plain and _is_middle(output)):
                others.append(output)
                continue
            token_ids, detokenizer = output.new_token_ids, state.detokenizer
            detokenizer.update(token_ids, False)
            if statistics is not None:
                _count(statistics, state.stats, len(token_ids), timestamp)
            receiver.take(detokenizer.get_next_output_text(False, True), token_ids)
        return self._long_way(others, timestamp, statistics, **more)


def _is_middle(output: Any) -> bool:
    return bool(output.new_token_ids) and output.finish_reason is None and output.events is None


def _count(statistics: Any, request: Any, count: int, timestamp: float | None) -> None:
    """What IterationStats.update_from_output does for an output in the middle of an answer."""
    statistics.num_generation_tokens += count
    request.num_generation_tokens += count
    statistics.inter_token_latencies_iter.append(timestamp - request.last_token_ts)
    request.last_token_ts = timestamp
