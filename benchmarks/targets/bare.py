"""A bare `AsyncLLM.generate()` loop as in vLLM's documentation: vLLM embedded without llmserve."""

import itertools
from collections.abc import Callable
from typing import Any

import attrs

from benchmarks.recording.results import RequestRecord
from benchmarks.workload.requests import Item


@attrs.frozen
class Bare:
    llm: Any
    _numbers: "itertools.count[int]" = attrs.field(factory=itertools.count)

    async def send(self, item: Item, record: RequestRecord, now: Callable[[], float], origin: float) -> tuple[int, ...]:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(max_tokens=item.max_tokens, temperature=0, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        answer: list[int] = []
        deliveries = record.deliveries
        async for output in self.llm.generate(tokens_input(list(item.prompt)), params, f"bare-{next(self._numbers)}"):
            token_ids = output.outputs[0].token_ids
            if token_ids:
                deliveries.append((now(), len(token_ids)))
                answer += token_ids
        record.completion_tokens = len(answer)
        record.outcome = "ok" if len(answer) == item.max_tokens else "wrong_token_count"
        return tuple(answer)
