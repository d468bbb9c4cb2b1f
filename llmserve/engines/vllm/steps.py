"""Combines the step statistics of vLLM's engine cores into the figures of one engine.

There is one core, or `data_parallel_size` cores, each with its own batch and cache. They count as
one engine that makes a step when each of them has made one. Such a step computes the tokens of all
batches in the time of one. Written against vLLM 0.25.1 and 0.32.0.
"""

from collections.abc import Sequence
from typing import Any

import attrs

from llmserve.engine import EngineStatistics


@attrs.define
class _Core:
    """A core at its last step, which ended at `stepped`; None if that step left nothing to do."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    stepped: float | None = None


class CoreSteps:
    """Counters since the first start, and the running requests of the current engine."""

    def __init__(self) -> None:
        self.statistics = EngineStatistics()
        self._cores = {0: _Core()}
        self._busy_steps = 0
        self._busy_seconds = 0.0

    def begin(self, ranks: Sequence[int] = (0,)) -> None:
        """Reset for a new engine with the cores of these numbers."""
        self._cores = {rank: _Core() for rank in ranks}
        # The counts of an engine with another number of cores keep their weight.
        self._busy_steps = self.statistics.busy_steps * len(ranks)
        self._busy_seconds = self.statistics.busy_seconds * len(ranks)
        self.statistics = attrs.evolve(self.statistics, running=0, waiting=0, kv_usage=0.0)

    def record(self, core: int, scheduler_stats: Any, iteration_stats: Any, *, now: float, more: bool) -> None:
        """Add a step of one core that has just ended. `more` says whether requests are left."""
        last, mine = self.statistics, self._cores[core]
        changes: dict[str, Any] = {"steps": last.steps + 1}
        if mine.stepped is not None:
            self._busy_steps += 1
            self._busy_seconds += now - mine.stepped
            changes["busy_steps"] = self._busy_steps // len(self._cores)
            changes["busy_seconds"] = self._busy_seconds / len(self._cores)
        if scheduler_stats is not None:
            mine.running = scheduler_stats.num_running_reqs
            mine.waiting = scheduler_stats.num_waiting_reqs + getattr(scheduler_stats, "num_skipped_waiting_reqs", 0)
            mine.kv_usage = scheduler_stats.kv_cache_usage
            prefix = scheduler_stats.prefix_cache_stats
            changes |= {
                "told": now,
                "running": sum(one.running for one in self._cores.values()),
                "waiting": sum(one.waiting for one in self._cores.values()),
                "kv_usage": sum(one.kv_usage for one in self._cores.values()) / len(self._cores),
                "prefix_cache_queries": last.prefix_cache_queries + (prefix.queries if prefix else 0),
                "prefix_cache_hits": last.prefix_cache_hits + (prefix.hits if prefix else 0),
            }
        if iteration_stats is not None:
            changes["preemptions"] = last.preemptions + iteration_stats.num_preempted_reqs
            changes["prompt_tokens"] = last.prompt_tokens + iteration_stats.num_prompt_tokens
            changes["generation_tokens"] = last.generation_tokens + iteration_stats.num_generation_tokens
        # The clients of a single core know before the core itself whether it has more to do.
        mine.stepped = now if more and (len(self._cores) == 1 or mine.running or mine.waiting) else None
        self.statistics = attrs.evolve(last, **changes)
