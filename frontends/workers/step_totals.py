"""Combines the workers' reports of engine steps into what a single client would have seen."""

import attrs

from frontends.workers.messages import StepCount
from llmserve.admission import EngineSample

# A worker without a report for this many seconds has no requests in the engine.
RECENT_SECONDS = 1.0


@attrs.define(kw_only=True)
class StepAggregator:
    """Combines the reports of all workers.

    With `one_engine`, a worker sees those steps of the shared engine in which it has requests.
    Otherwise each worker has its own engine. `number` is the engine's in its pool.
    """

    number: int = 0
    one_engine: bool
    _last: dict[int, StepCount] = attrs.field(factory=dict, init=False)
    _steps: float = attrs.field(default=0.0, init=False)
    _seconds: float = attrs.field(default=0.0, init=False)
    _preemptions: int = attrs.field(default=0, init=False)
    _prompt_tokens: int = attrs.field(default=0, init=False)
    _cached_tokens: int = attrs.field(default=0, init=False)
    _generation_tokens: int = attrs.field(default=0, init=False)

    def take(self, worker: int, steps: StepCount) -> None:
        """Add a worker's counters. Its first report is only the starting point."""
        last = self._last.get(worker)
        self._last[worker] = steps
        if last is None:
            return
        # Several workers see the same step, which counts once.
        listeners = len(self._recent(steps.told))
        self._steps += (steps.steps - last.steps) / listeners
        self._seconds += (steps.busy_seconds - last.busy_seconds) / listeners
        self._preemptions += steps.preemptions - last.preemptions
        self._prompt_tokens += steps.prompt_tokens - last.prompt_tokens
        self._cached_tokens += steps.cached_tokens - last.cached_tokens
        self._generation_tokens += steps.generation_tokens - last.generation_tokens

    @property
    def made(self) -> float:
        """The number of steps so far."""
        return self._steps

    def forget(self, worker: int) -> None:
        self._last.pop(worker, None)

    def together(self, now: float) -> EngineSample:
        told = self._recent(now) or list(self._last.values())
        latest = max(told, key=lambda one: one.told)
        # A shared engine reports its running requests to one of its clients at each step.
        state = [latest] if self.one_engine else told
        sizes = [one.kv_tokens for one in state]
        return EngineSample(
            engine=self.number,
            steps=self._steps,
            busy_seconds=self._seconds,
            running=sum(one.running for one in state),
            waiting=sum(one.waiting for one in state),
            kv_usage=max(one.kv_usage for one in state),
            kv_tokens=None if None in sizes else sum(size for size in sizes if size is not None),
            preemptions=self._preemptions,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generation_tokens=self._generation_tokens,
        )

    def _recent(self, now: float) -> list[StepCount]:
        return [one for one in self._last.values() if now - one.told < RECENT_SECONDS]
