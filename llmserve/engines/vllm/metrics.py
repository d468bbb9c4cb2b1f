"""vLLM's figures after each step: for our own statistics and for its `vllm:*` series.

vLLM's own Prometheus logger puts every token's latency into a histogram at once, which takes a
microsecond. Here the latencies are kept, and counted together after some thousand tokens or when
the histogram is read. Written against vLLM 0.25.1 and 0.32.0.
"""

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

# About a tenth of a second of tokens on a fast GPU. Counting them takes 0.1 ms (on the machine of
# benchmarks/host_cost/overhead.py).
MAX_KEPT = 4096


def make_stat_loggers(record: Callable[[int, Any, Any], None]) -> list[Any]:
    """Make AsyncLLM's loggers: one calls `record`, and one replaces vLLM's for Prometheus.

    `record` gets the core's number, its scheduler statistics and its iteration statistics.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerBase

    class StepRecorder(StatLoggerBase):  # type: ignore[misc]  # vllm is not installed where types are checked
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0) -> None:
            # An exception here would end vLLM's output handler, and the whole engine with it.
            try:
                record(engine_idx, scheduler_stats, iteration_stats)
            except Exception:
                logger.exception("reading the engine's statistics failed")

        def log_engine_initialized(self) -> None:
            pass

    class PatientPrometheus(PrometheusStatLogger):  # type: ignore[misc]  # as above
        _histogram_cls = patient_histogram()

    return [StepRecorder, PatientPrometheus]


def patient_histogram() -> type:
    """Return a `prometheus_client.Histogram` class that counts its observations later."""
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
            # A scraper may read in another thread, so the values are taken out before they are
            # counted.
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
