"""A model without computation: which requests of a step get a token, and when it is over.

It reads what vLLM's scheduler sends to a model, and does not import vLLM. `null_executor` puts it
behind vLLM's engine core.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from benchmarks.stand_ins.stub_core import TOKENS


@attrs.define
class NullModel:
    """A model whose steps take `pace` seconds each, one after another.

    They take `per_sequence` and `per_token` seconds more for each sequence and each token.
    """

    pace: float = 0.0
    per_sequence: float = 0.0
    per_token: float = 0.0
    clock: Callable[[], float] = time.monotonic
    _prompts: dict[str, int] = attrs.field(factory=dict)
    _tokens: Iterator[int] = attrs.field(factory=lambda: itertools.cycle(TOKENS))
    _more: float = 0.0
    _over_at: float = 0.0

    def step(self, scheduled: Any) -> tuple[list[str], list[list[int]]]:
        """Return the ids of the scheduled requests and each request's new tokens.

        `scheduled` is vLLM's SchedulerOutput. A request gets one token, or none while a part of its
        prompt is left for later steps.
        """
        for request_id in scheduled.finished_req_ids:
            self._prompts.pop(request_id, None)
        known: dict[str, int] = {}
        for new in scheduled.scheduled_new_reqs:
            self._prompts[new.req_id] = len(new.prompt_token_ids)
            # vLLM's second model runner gets a preempted request as a new one that includes its
            # answer so far.
            known[new.req_id] = len(new.prefill_token_ids or new.prompt_token_ids) - new.num_computed_tokens
        cached = scheduled.scheduled_cached_reqs
        for request_id, computed, answered in zip(cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True):
            known[request_id] = self._prompts[request_id] + answered - computed
        numbers = scheduled.num_scheduled_tokens
        self._more = self.per_sequence * len(numbers) + self.per_token * sum(numbers.values())
        return list(numbers), [[next(self._tokens)] if number >= known[request_id] else [] for request_id, number in numbers.items()]

    def begin(self) -> float:
        """Start the step and return the time at which it is over."""
        self._over_at = max(self.clock(), self._over_at) + self.pace + self._more
        return self._over_at


def paced(words: str) -> NullModel:
    """Return a model with the seconds of a step, and optionally those for each sequence and each token, after colons."""
    names = ("pace", "per_sequence", "per_token")
    return NullModel(**dict(zip(names, map(float, words.split(":")), strict=False)))  # type: ignore[arg-type]  # the names are those of floats
