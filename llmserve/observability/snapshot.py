"""Snapshots of a manager's figures, and merging those of several managers."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import attrs

from llmserve.admission import AdmissionStatistics
from llmserve.engine import EngineStatistics, combined
from llmserve.observability.metrics import MetricsRecorder
from llmserve.state import EngineState, ManagerStatistics


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
            "engine": _plain(statistics.engine),
            "engines": [{"up": one.up, "restarts": one.restarts, **_plain(one.engine)} for one in statistics.engines],
            "dropped_lines": dict(self.dropped_lines),
        }

    def ended(self) -> Self:
        """Keep only the counters, for a manager that has ended."""
        engine = _at_rest(self.statistics.engine)
        engines = tuple(attrs.evolve(one, up=False, engine=_at_rest(one.engine)) for one in self.statistics.engines)
        admission = self.statistics.admission
        if admission is not None:
            limit = None if admission.limit is None else 0
            admission = attrs.evolve(admission, running=0, waiting=0, limit=limit, max_waiting=0, drain_rate=None, predicted_wait=None)
        return attrs.evolve(
            self, statistics=attrs.evolve(self.statistics, open=0, tokenizing=0, admission=admission, engine=engine, engines=engines)
        )

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
        engines = _engines(statistics, one_engine=one_engine)
        still = sum(part.open for part in statistics)
        several = one_engine and len(engines) > 1
        whole = ManagerStatistics(
            state=statistics[0].state,
            restarts=sum(part.restarts for part in statistics),
            open=still,
            tokenizing=sum(part.tokenizing for part in statistics),
            admission=admission,
            engine=combined([one.engine for one in engines])
            if several
            else _engine([part.engine for part in statistics], still, one_engine=one_engine),
            engines=engines,
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


def _engines(parts: Sequence[ManagerStatistics], *, one_engine: bool) -> tuple[EngineState, ...]:
    """Merge what managers tell of each engine. With `one_engine` they share the engines of each number."""
    if not one_engine:
        return tuple(state for part in parts for state in part.engines)
    still = sum(part.open for part in parts)
    merged = []
    for number in range(max(len(part.engines) for part in parts)):
        states = [part.engines[number] for part in parts if number < len(part.engines)]
        engine = _engine([state.engine for state in states], still, one_engine=True)
        merged.append(EngineState(up=any(state.up for state in states), restarts=sum(state.restarts for state in states), engine=engine))
    return tuple(merged)


def _engine(engines: Sequence[EngineStatistics], still: int, *, one_engine: bool) -> EngineStatistics:
    """Merge the figures of several engines, or what managers with `still` open requests tell of one."""
    tokens = ("prompt_tokens", "generation_tokens", "fast_path_tokens", "slow_path_tokens")
    counted = (*tokens, "preemptions", "prefix_cache_queries", "prefix_cache_hits")
    summed = (*counted, "busy_steps", "busy_seconds", "running", "waiting")
    sums = {name: sum(getattr(engine, name) for engine in engines) for name in summed}
    latest = max(engines, key=lambda engine: engine.told)
    if one_engine:
        # Each manager counts its own requests' tokens. But the engine reports its running and
        # waiting requests to one client per step, and reports nothing while it makes no step. So
        # these numbers are capped by the number of open requests.
        sums["running"] = min(latest.running, still)
        sums["waiting"] = min(latest.waiting, still - sums["running"])
    usage = latest.kv_usage if one_engine else max(engine.kv_usage for engine in engines)
    return EngineStatistics(told=latest.told, steps=max(engine.steps for engine in engines), kv_usage=usage, **sums)


def _plain(engine: EngineStatistics) -> dict[str, Any]:
    return attrs.asdict(engine, filter=lambda field, _: field.name != "told")


def _at_rest(engine: EngineStatistics) -> EngineStatistics:
    return attrs.evolve(engine, running=0, waiting=0, kv_usage=0.0)
