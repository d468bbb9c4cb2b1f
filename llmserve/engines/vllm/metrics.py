"""vLLM's figures after each step: for our own statistics and for its `vllm:*` series.

vLLM's own Prometheus logger puts every token's latency into a histogram at once, which takes a
microsecond. Here the latencies are kept, and counted together after some thousand tokens or when
the histogram is read.

vLLM registers a metric once in a process, and a second engine removes those of the first. Here they
move into one collector, which joins the series of all engines, also those of several managers. The
label `engine` tells them apart.
Written against vLLM 0.25.1 and 0.32.0.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

logger = logging.getLogger(__name__)

# About a tenth of a second of tokens on a fast GPU. Counting them takes 0.1 ms (on the machine of
# benchmarks/host_cost/overhead.py).
MAX_KEPT = 4096


def make_stat_loggers(owner: object, record: Callable[[int, Any, Any], None], number: int = 0) -> list[Any]:
    """Make AsyncLLM's loggers: one calls `record`, and one replaces vLLM's for Prometheus.

    `record` gets the core's number in its engine, its scheduler statistics and its iteration
    statistics. `owner` is the engine, and `number` its number in its pool.
    """
    number = all_series().start(owner, number)
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

        def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
            # The cores of all engines are counted through: engine 1 of two with two cores each has
            # the labels 2 and 3.
            self._first = number * vllm_config.parallel_config.data_parallel_size
            with all_series().of(number):
                super().__init__(vllm_config, [self._first + index for index in engine_indexes or [0]])

        def log_engine_initialized(self) -> None:
            with all_series().of(number):
                super().log_engine_initialized()

        def record(self, *statistics: Any, engine_idx: int = 0, **more: Any) -> None:
            super().record(*statistics, engine_idx=self._first + engine_idx, **more)

    return [StepRecorder, PatientPrometheus]


@attrs.define
class _Metrics:
    """What vLLM has registered for one engine. `owner` is the engine's identity."""

    owner: int
    running: bool = True
    metrics: list[Any] = attrs.field(factory=list)


class EngineSeries:
    """Collects the metrics that vLLM has registered for each engine of this process."""

    PREFIX = "vllm:"

    def __init__(self, registry: "CollectorRegistry") -> None:
        self._registry = registry
        self._lock = threading.RLock()
        # By number. The metrics of an engine that has ended stay until another one gets its number.
        self._engines: dict[int, _Metrics] = {}

    def start(self, owner: object, number: int) -> int:
        """Return the number of an engine that starts: this one, or the next that no other running engine has."""
        with self._lock:
            self._engines = {key: one for key, one in self._engines.items() if one.owner != id(owner)}
            while number in self._engines and self._engines[number].running:
                number += 1
            self._engines[number] = _Metrics(id(owner))
            return number

    def end(self, owner: object) -> None:
        """Note that an engine does not run any more."""
        with self._lock:
            for one in self._engines.values():
                one.running &= one.owner != id(owner)

    @contextmanager
    def of(self, engine: int) -> Iterator[None]:
        """Take over the metrics that vLLM registers inside for the engine with this number."""
        with self._lock:
            yield
            names = self._registry._collector_to_names  # noqa: SLF001 - as vLLM does
            made = [one for one in list(names) if getattr(one, "_name", "").startswith(self.PREFIX)]
            for one in made:
                self._registry.unregister(one)
            self._engines[engine].metrics.extend(made)

    def describe(self) -> list["Metric"]:
        """Reserve no names, because vLLM registers its own first."""
        return []

    def collect(self) -> list["Metric"]:
        with self._lock:
            engines = [(number, list(one.metrics)) for number, one in sorted(self._engines.items()) if one.metrics]
        families: dict[str, Metric] = {}
        for number, metrics in engines:
            for family in (family for metric in metrics for family in metric.collect()):
                if len(engines) > 1:
                    # Some of vLLM's series have no such label, and would be the same for two engines.
                    family.samples = [one._replace(labels={"engine": str(number), **one.labels}) for one in family.samples]
                families.setdefault(family.name, family)
                if families[family.name] is not family:
                    families[family.name].samples += family.samples
        return list(families.values())


@cache
def all_series() -> EngineSeries:
    """Return this process's collector, which is registered at the first call."""
    from prometheus_client import REGISTRY

    series = EngineSeries(REGISTRY)
    REGISTRY.register(series)
    return series


def end_series(owner: object) -> None:
    """Note that an engine has ended, which may never have had series."""
    if all_series.cache_info().currsize:
        all_series().end(owner)


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
