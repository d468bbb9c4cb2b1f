"""What a manager knows of itself, and several managers of one engine together."""

from collections.abc import Sequence
from typing import Any, Self

import attrs

from llmserve.admission import AdmissionStatistics
from llmserve.engine import EngineStatistics
from llmserve.metrics import MetricsRecorder
from llmserve.state import ManagerStatistics


@attrs.frozen
class Facts:
    """A snapshot and the record behind it, which goes on; the record is None before the manager has been entered."""

    statistics: ManagerStatistics
    recorder: MetricsRecorder | None

    def snapshot(self, now: float) -> dict[str, Any]:
        """As one dictionary of plain values."""
        statistics = self.statistics
        admission = attrs.asdict(statistics.admission) if statistics.admission else {}
        return {
            "state": statistics.state.value,
            "open": statistics.open,
            "tokenizing": statistics.tokenizing,
            **(self.recorder.snapshot(now) if self.recorder else {}),
            "admission": {**admission, "free_slots": statistics.free_slots},
            "engine": attrs.asdict(statistics.engine),
        }

    def ended(self) -> Self:
        """What remains of them when their manager is gone: what it has counted."""
        engine = attrs.evolve(self.statistics.engine, running=0, waiting=0, kv_usage=0.0)
        return attrs.evolve(self, statistics=attrs.evolve(self.statistics, open=0, tokenizing=0, engine=engine))

    @classmethod
    def together(cls, parts: "Sequence[Facts]", admission: AdmissionStatistics | None) -> Self:
        """Those of managers that share an engine and the admission to it. `parts` must not be empty."""
        statistics = [part.statistics for part in parts]
        recorders = [part.recorder for part in parts if part.recorder is not None]
        whole = ManagerStatistics(
            state=statistics[0].state,
            open=sum(part.open for part in statistics),
            tokenizing=sum(part.tokenizing for part in statistics),
            admission=admission,
            engine=_one_engine([part.engine for part in statistics]),
        )
        return cls(whole, MetricsRecorder.together(recorders) if recorders else None)


def _one_engine(parts: Sequence[EngineStatistics]) -> EngineStatistics:
    """Each part counts its own requests; what is the engine's as a whole, the one tells best that has heard most."""
    return EngineStatistics(
        steps=max(part.steps for part in parts),
        kv_usage=max(part.kv_usage for part in parts),
        **{
            name: sum(getattr(part, name) for part in parts)
            for name in (
                "running", "waiting", "preemptions", "prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits",
            )
        },
    )  # fmt: skip
