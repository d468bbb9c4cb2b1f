"""Snapshots of a manager's figures, and merging those of several managers."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import attrs

from llmserve.admission import AdmissionStatistics
from llmserve.engine import EngineStatistics
from llmserve.observability.metrics import MetricsRecorder
from llmserve.state import ManagerStatistics


@attrs.frozen
class MetricsSnapshot:
    """A manager's statistics, and the recorder behind its metrics, which continues to count.

    The recorder is None before the manager has been entered. `dropped_lines` counts lost log lines
    by the log's name, if the program counts them.
    """

    statistics: ManagerStatistics
    recorder: MetricsRecorder | None
    dropped_lines: Mapping[str, int] = attrs.field(factory=dict)

    def snapshot(self, now: float) -> dict[str, Any]:
        """Return all figures as one dictionary of plain values."""
        statistics = self.statistics
        admission = attrs.asdict(statistics.admission) if statistics.admission else {}
        return {
            "state": statistics.state.value,
            "restarts": statistics.restarts,
            "open": statistics.open,
            "tokenizing": statistics.tokenizing,
            **(self.recorder.snapshot(now) if self.recorder else {}),
            "admission": {**admission, "free_slots": statistics.free_slots},
            "engine": attrs.asdict(statistics.engine, filter=lambda field, _: field.name != "told"),
            "dropped_lines": dict(self.dropped_lines),
        }

    def ended(self) -> Self:
        """Keep only the counters, for a manager that has ended."""
        engine = attrs.evolve(self.statistics.engine, running=0, waiting=0, kv_usage=0.0)
        admission = self.statistics.admission
        if admission is not None:
            limit = None if admission.limit is None else 0
            admission = attrs.evolve(admission, running=0, waiting=0, limit=limit, max_waiting=0, drain_rate=None, predicted_wait=None)
        return attrs.evolve(self, statistics=attrs.evolve(self.statistics, open=0, tokenizing=0, admission=admission, engine=engine))

    def shifted(self, seconds: float) -> Self:
        """Convert to the clock of another machine, which is `seconds` ahead."""
        engine = attrs.evolve(self.statistics.engine, told=self.statistics.engine.told + seconds)
        recorder = copy.deepcopy(self.recorder)
        if recorder is not None:
            recorder.shift(seconds)
        return attrs.evolve(self, statistics=attrs.evolve(self.statistics, engine=engine), recorder=recorder)

    @classmethod
    def of_engines(cls, parts: "Sequence[MetricsSnapshot]") -> Self:
        """Merge managers that each have an admission and an engine. `parts` must not be empty."""
        admissions = [part.statistics.admission for part in parts if part.statistics.admission is not None]
        return cls.together(parts, _admission(admissions) if admissions else None, one_engine=False)

    @classmethod
    def together(cls, parts: "Sequence[MetricsSnapshot]", admission: AdmissionStatistics | None, *, one_engine: bool) -> Self:
        """Merge managers that share the admission, and the engine too with `one_engine`.

        `parts` must not be empty.
        """
        statistics = [part.statistics for part in parts]
        recorders = [part.recorder for part in parts if part.recorder is not None]
        whole = ManagerStatistics(
            state=statistics[0].state,
            restarts=sum(part.restarts for part in statistics),
            open=sum(part.open for part in statistics),
            tokenizing=sum(part.tokenizing for part in statistics),
            admission=admission,
            engine=_engine(statistics, one_engine=one_engine),
        )
        dropped = Counter[str]()
        for part in parts:
            dropped.update(part.dropped_lines)
        return cls(whole, MetricsRecorder.together(recorders) if recorders else None, dict(dropped))

    def with_dropped(self, lines: Mapping[str, int]) -> Self:
        """Add lines that another process of the program has lost."""
        both = {name: self.dropped_lines.get(name, 0) + lines.get(name, 0) for name in (*self.dropped_lines, *lines)}
        return attrs.evolve(self, dropped_lines=both)


def _admission(parts: Sequence[AdmissionStatistics]) -> AdmissionStatistics:
    refused, held = Counter[str](), Counter[str]()
    for part in parts:
        refused.update(part.refused)
        held.update(part.held)
    waits = [part.predicted_wait for part in parts if part.predicted_wait is not None]
    return attrs.evolve(
        parts[0],
        running=sum(part.running for part in parts),
        waiting=sum(part.waiting for part in parts),
        limit=_total(part.limit for part in parts),
        max_waiting=_total(part.max_waiting for part in parts),
        admitted=sum(part.admitted for part in parts),
        refused=dict(refused),
        held=dict(held),
        drain_rate=sum(part.drain_rate or 0.0 for part in parts) or None,
        # A newcomer is sent to the part with the shortest wait.
        predicted_wait=min(waits, default=None),
    )


def _total(limits: Iterable[int | None]) -> int | None:
    """Return the sum of the limits, or None if one of them is None."""
    found = list(limits)
    return None if None in found else sum(limit for limit in found if limit is not None)


def _engine(parts: Sequence[ManagerStatistics], *, one_engine: bool) -> EngineStatistics:
    engines = [part.engine for part in parts]
    tokens = ("prompt_tokens", "generation_tokens", "fast_path_tokens", "slow_path_tokens")
    counted = (*tokens, "preemptions", "prefix_cache_queries", "prefix_cache_hits")
    summed = (*counted, "busy_steps", "busy_seconds", "running", "waiting")
    sums = {name: sum(getattr(engine, name) for engine in engines) for name in summed}
    latest = max(engines, key=lambda engine: engine.told)
    if one_engine:
        # Each manager counts its own requests' tokens. But the engine reports its running and
        # waiting requests to one client per step, and reports nothing while it makes no step. So
        # these numbers are capped by the number of open requests.
        still = sum(part.open for part in parts)
        sums["running"] = min(latest.running, still)
        sums["waiting"] = min(latest.waiting, still - sums["running"])
    usage = latest.kv_usage if one_engine else max(engine.kv_usage for engine in engines)
    return EngineStatistics(told=latest.told, steps=max(engine.steps for engine in engines), kv_usage=usage, **sums)
