"""Decides whether a point is valid, or reflects the generator, a drift or chance. Pure.

Every reason is a sentence with its number; a point without reasons is valid.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.analysis.outcomes import answered
from benchmarks.analysis.stages import Waterfall
from benchmarks.analysis.steady_state import block_rates, in_flight
from benchmarks.analysis.summary import Distribution, Summary, distribution
from benchmarks.recording.results import Point, RequestRecord

# Sending late by 10 % of a latency distorts the latency by as much. 5 ms is a time slice of the
# system's scheduler.
LATENESS_SHARE = 0.1
LATENESS_FLOOR = 0.005
# Above this share of a core, a client's own queueing shows in its figures.
BUSY_SHARE = 0.7
# Little's law over a window holds up to the requests at its edges, a share of those inside.
LITTLE_SHARE = 0.03
RESIDUAL_SHARE = 0.02
# Blocks of a window that all rise or all fall by more than this, from first to last, are a drift.
DRIFT_SHARE = 0.2
DRIFT_BLOCKS = 4


def faults(
    point: Point, records: Sequence[RequestRecord], summary: Summary, waterfall: Waterfall | None, ceiling: float | None
) -> list[str]:
    """Return why the point is not valid; `ceiling` is the generator's, in tokens per second."""
    checks = (
        _complete(point, records),
        _answered(summary),
        _on_time(point, records, summary),
        _same_clock(point, summary),
        _not_busy(point, summary, ceiling),
        _token_counts(records),
        _littles_law(point, records, summary),
        _stationary(point, records, summary),
        _residual(waterfall),
    )
    return [reason for reason in checks if reason is not None]


def _complete(point: Point, records: Sequence[RequestRecord]) -> str | None:
    if point.saturated_at is not None:
        return None
    if point.problem:
        return f"cut short after {len(records)} of {point.planned} requests: {point.problem}"
    if not point.complete:
        return f"cut short after {len(records)} of {point.planned} requests"
    first_turns = sum(1 for record in records if record.turn == 0 and not record.lead)
    if point.planned is not None and first_turns < point.planned:
        return f"{point.planned - first_turns} of {point.planned} arrivals were dropped"
    return None


def _answered(summary: Summary) -> str | None:
    return None if answered(summary) else f"no request was answered: {summary.outcomes}"


def _on_time(point: Point, records: Sequence[RequestRecord], summary: Summary) -> str | None:
    bound = max(LATENESS_FLOOR, LATENESS_SHARE * (summary.ttft_service.at("p50") or 0.0))
    # Of many processes, one that is late sends too few of all requests to show in their p99.
    parts = [
        distribution([record.dispatched - record.intended for record in part if record.dispatched is not None])
        for part in _by_process(point, records)
    ]
    which, late = max(enumerate(map(_largest, [*parts, summary.lateness])), key=lambda found: found[1])
    if late > bound:
        who = f"worker {point.workers[which].name} " if which < len(point.workers) else ""
        return f"{who}sent up to {late * 1000:.1f} ms late, more than {bound * 1000:.1f} ms"
    # In the process of the engine's client, the loop's lag is part of the measurement.
    if point.processes and point.loop_lag is not None and point.loop_lag > bound:
        words = f"woke {point.loop_lag * 1000:.1f} ms late (p99), more than {bound * 1000:.1f} ms"
        who = next((f"worker {worker.name}" for worker in point.workers if worker.loop_lag == point.loop_lag), "the generator")
        return f"{who}'s event loop {words}: increase --processes, or stop other programs"
    return None


def _by_process(point: Point, records: Sequence[RequestRecord]) -> list[list[RequestRecord]]:
    """Return the requests of each generator process, without leads."""
    count = min(point.processes, point.concurrency or point.processes)
    parts: list[list[RequestRecord]] = [[] for _ in range(count)]
    for record in records:
        if count and not record.lead:
            parts[record.number % count].append(record)
    return parts


def _largest(found: Distribution) -> float:
    return max((quantile.value for quantile in found.quantiles.values()), default=0.0)


def _same_clock(point: Point, summary: Summary) -> str | None:
    """Check that the workers' requests can be counted together, as those in flight are."""
    bound = max(LATENESS_FLOOR, LATENESS_SHARE * (summary.e2e.at("p50") or 0.0))
    worst = max(point.workers, key=lambda worker: worker.clock_error, default=None)
    if worst is None or worst.clock_error <= bound:
        return None
    return f"the clock of worker {worst.name} is known only within {worst.clock_error * 1000:.1f} ms, more than {bound * 1000:.1f} ms"


def _not_busy(point: Point, summary: Summary, ceiling: float | None) -> str | None:
    share = point.client_cpu_seconds / point.seconds if point.seconds else 0.0
    if point.processes and share > BUSY_SHARE:
        return f"the generator used {share:.0%} of a core, more than {BUSY_SHARE:.0%}: it is the bottleneck, so increase --processes"
    if not point.processes and ceiling and summary.tokens_per_second > BUSY_SHARE * ceiling:
        rate = f"{summary.tokens_per_second:,.0f} tokens/s"
        return f"{rate} is more than {BUSY_SHARE:.0%} of the generator's ceiling, {ceiling:,.0f}"
    return None


def _token_counts(records: Sequence[RequestRecord]) -> str | None:
    wrong = sum(1 for record in records if record.outcome == "wrong_token_count")
    lost = sum(
        1 for record in records if record.outcome == "ok" and sum(count for _, count in record.deliveries) != record.completion_tokens
    )
    return f"{wrong + lost} answers do not have the requested number of tokens" if wrong + lost else None


def _littles_law(point: Point, records: Sequence[RequestRecord], summary: Summary) -> str | None:
    """Check L = lambda * W over the window: mean in flight against throughput times mean time."""
    start, end = summary.window
    inside = [record for record in records if record.finished is not None and start < record.finished <= end]
    if point.concurrency is None or not inside:
        return None
    level = in_flight(records, summary.window)
    times = [(record.finished or 0.0) - (record.dispatched or 0.0) for record in inside]
    implied = len(inside) / (end - start) * float(np.mean(times))
    bound = max(LITTLE_SHARE, 2 * level / len(inside))
    if level and abs(implied / level - 1) > bound:
        sides = f"{level:.1f} in flight, {implied:.1f} by throughput and time"
        return f"Little's law is off by {implied / level - 1:+.0%} (at most {bound:.0%}): {sides}"
    return None


def _stationary(point: Point, records: Sequence[RequestRecord], summary: Summary) -> str | None:
    """Check a closed loop; an open loop's throughput follows its arrivals, and its backlog shows the rest."""
    rates = block_rates(records, summary.window)
    if point.concurrency is None or len(rates) < DRIFT_BLOCKS:
        return None
    quarters = np.array([part.mean() for part in np.array_split(rates, DRIFT_BLOCKS)])
    steps = np.diff(quarters)
    change = quarters[-1] / quarters[0] - 1 if quarters[0] else 0.0
    if (np.all(steps > 0) or np.all(steps < 0)) and abs(change) > DRIFT_SHARE:
        return f"throughput drifted by {change:+.0%} within the window"
    return None


def _residual(waterfall: Waterfall | None) -> str | None:
    if waterfall is None or waterfall.residual <= RESIDUAL_SHARE:
        return None
    return f"the stages differ from the end-to-end time by {waterfall.residual:.1%}, more than {RESIDUAL_SHARE:.0%}"
