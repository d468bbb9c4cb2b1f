"""What vLLM tells after each step, at a small price: our own figures, and its `vllm:*` series for Prometheus. Written against vLLM 0.25.1
and 0.32.0.

vLLM's own logger puts every token's latency into a histogram at once, which takes a microsecond; here they are kept, and counted together
some thousand tokens later or when somebody reads them.
"""

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

# About a tenth of a second of tokens on a fast GPU; counting them takes 0.1 ms (benchmarks/host_cost/overhead.py's machine).
MAX_KEPT = 4096


def make_stat_loggers(record: Callable[[int, Any, Any], None]) -> list[Any]:
    """For AsyncLLM: one that calls `record(core, scheduler_stats, iteration_stats)`, and one in place of vLLM's for Prometheus."""
    from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerBase

    class StepRecorder(StatLoggerBase):  # type: ignore[misc]  # vllm is not installed where types are checked
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0) -> None:
            # vLLM's output handler dies of an exception in here, and the whole engine with it.
            try:
                record(engine_idx, scheduler_stats, iteration_stats)
            except Exception:
                logger.exception("reading the engine's statistics failed")

        def log_engine_initialized(self) -> None:
            pass

    class PatientPrometheus(PrometheusStatLogger):  # type: ignore[misc]
        _histogram_cls = patient_histogram()

    return [StepRecorder, PatientPrometheus]


def patient_histogram() -> type:
    """A `prometheus_client.Histogram` that counts later what it is told."""
    import numpy as np
    from prometheus_client import Histogram

    class PatientHistogram(Histogram):
        def _metric_init(self) -> None:
            super()._metric_init()
            self._kept: list[float] = []

        def observe(self, amount: float, exemplar: Any = None) -> None:
            kept = self._kept
            kept.append(amount)
            if len(kept) >= MAX_KEPT:
                self._count()

        def _count(self) -> None:
            # A scraper may read from another thread: what is taken out here is counted once.
            kept, self._kept = self._kept, []
            if kept:
                found = np.bincount(np.searchsorted(self._upper_bounds, kept))
                for bucket, number in zip(self._buckets, found.tolist(), strict=False):
                    bucket.inc(number)
                self._sum.inc(sum(kept))

        def _child_samples(self) -> Any:
            self._count()
            return super()._child_samples()

    return PatientHistogram
