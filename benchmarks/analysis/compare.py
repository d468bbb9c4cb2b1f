"""Compares two runs load by load: ratios with intervals, and regressions. Pure and seeded.

A figure has regressed if its whole 95 % interval lies beyond the margin on the worse side. A bad
mean with a wide interval is no regression, and neither is a certain change of 0.1 %. Shares of the
requests (refused, failed) are compared as differences.
"""

import csv
import io
from collections.abc import Callable, Sequence

import attrs
import numpy as np

from benchmarks.analysis.report import Analysis, View
from benchmarks.analysis.shares import Share, shares
from benchmarks.analysis.steady_state import Floats

RESAMPLES = 1000
BLOCKS = 16
MARGIN = 0.05
MAX_HIT_DIFFERENCE = 0.1


@attrs.frozen
class Ratio:
    """A figure of B divided by that of A, with its 95 % interval.

    Attributes:
        better: +1 if a larger figure is better, or -1.
    """

    load: str
    figure: str
    a: float
    b: float
    low: float
    high: float
    better: int

    @property
    def value(self) -> float:
        return self.b / self.a

    def regressed(self, margin: float) -> bool:
        return self.high < 1 - margin if self.better > 0 else self.low > 1 + margin

    def improved(self, margin: float) -> bool:
        return self.low > 1 + margin if self.better > 0 else self.high < 1 - margin


def _mean(values: Floats) -> Floats:
    return np.asarray(values.mean(axis=-1))


def _quantile(share: float) -> Callable[[Floats], Floats]:
    return lambda values: np.asarray(np.quantile(values, share, axis=-1))


# Name, sample of a view, statistic of the sample, sign of the better side, and minimum sample size.
FIGURES: tuple[tuple[str, Callable[[View], Floats], Callable[[Floats], Floats], int, int], ...] = (
    ("throughput", lambda view: np.asarray(view.blocks), _mean, 1, 2),
    ("TTFT p50", lambda view: view.seconds("ttft"), _quantile(0.5), -1, 8),
    ("TTFT p95", lambda view: view.seconds("ttft"), _quantile(0.95), -1, 72),
    ("TPOT p50", lambda view: view.seconds("tpot"), _quantile(0.5), -1, 8),
    ("E2E p50", lambda view: view.seconds("e2e"), _quantile(0.5), -1, 8),
    ("E2E p95", lambda view: view.seconds("e2e"), _quantile(0.95), -1, 72),
    ("met the SLO", lambda view: np.asarray(view.within, dtype=np.float64), _mean, 1, 8),
)


UNITS = {"throughput": (1, "tok/s"), "met the SLO": (100, "%")}


@attrs.frozen
class Comparison:
    """Two runs, load by load.

    Attributes:
        notes: What was not compared, or only with reservations, and why.
    """

    ratios: list[Ratio]
    shares: list[Share]
    notes: list[str]

    def regressed(self, margin: float) -> bool:
        return any(one.regressed(margin) for one in self.ratios) or any(one.regressed for one in self.shares)


def compare(a: Analysis, b: Analysis, seed: int = 0) -> Comparison:
    """Compare all loads of equal target, lengths and pattern; repeats are pooled.

    Times and throughput are those of valid points. A point is also invalid if the server fails in
    it, so refusals and failures are those of all points.
    """
    ours, theirs = _by_load(a), _by_load(b)
    notes = [
        f"{load}: only in {side}" for side, one, other in (("A", ours, theirs), ("B", theirs, ours)) for load in one if load not in other
    ]
    same = _prompts(a) is not None and _prompts(a) == _prompts(b)
    hits = [view.evidence.cache_hits for view in (*a.views, *b.views)]
    if same and a.recording.run.provenance.get("engine") is None and None in hits:
        notes.append("both runs sent the same prompts: if the server kept its prefix cache, B is faster only because of it (see --salt)")
    ratios: list[Ratio] = []
    for load in [load for load in ours if load in theirs]:
        doubt = _invalid(load, ours[load], theirs[load]) or _cached(load, ours[load], theirs[load], same=same)
        if doubt is not None:
            notes.append(doubt.text)
        if doubt is None or not doubt.excludes:
            ratios += _ratios(load, ours[load], theirs[load], np.random.default_rng(seed))
    summaries = [{load: [view.summary for view in views] for load, views in side.items()} for side in (ours, theirs)]
    return Comparison(ratios, shares(summaries[0], summaries[1]), notes)


@attrs.frozen
class _Doubt:
    """A reservation about a load; it may exclude the load's times and throughput."""

    text: str
    excludes: bool = True


def _prompts(analysis: Analysis) -> object:
    """Return the digest of what the run sent."""
    return analysis.recording.run.workload.get("digest")


def _invalid(load: str, ours: Sequence[View], theirs: Sequence[View]) -> _Doubt | None:
    for side, views in (("A", ours), ("B", theirs)):
        if not any(view.valid for view in views):
            return _Doubt(f"{load}: times and throughput are not compared, because {side} is not valid: {'; '.join(views[0].faults)}")
    return None


def _cached(load: str, ours: Sequence[View], theirs: Sequence[View], *, same: bool) -> _Doubt | None:
    a, b = (np.mean([view.evidence.cache_hits or 0.0 for view in views]) for views in (ours, theirs))
    if abs(a - b) <= MAX_HIT_DIFFERENCE:
        return None
    said = f"{load}: the prefix cache had {a:.0%} of A's prompt tokens and {b:.0%} of B's"
    if same:
        return _Doubt(f"{said}, and both runs sent the same prompts, so times and throughput are not compared")
    return _Doubt(f"{said}, which may explain a difference", excludes=False)


def _ratios(load: str, ours: Sequence[View], theirs: Sequence[View], rng: np.random.Generator) -> list[Ratio]:
    sides = [[view for view in views if view.valid] for views in (ours, theirs)]
    # Latencies of a growing backlog depend on the duration.
    grow = all(view.state == "over-saturated" for views in sides for view in views)
    found = []
    for name, sample, statistic, better, least in FIGURES[:1] if grow else FIGURES:
        first, second = (np.concatenate([sample(view) for view in views]) for views in sides)
        if min(len(first), len(second)) >= least and statistic(first) > 0:
            found.append(_ratio(load, name, first, second, statistic, better, rng))
    return found


def _by_load(analysis: Analysis) -> dict[str, list[View]]:
    found: dict[str, list[View]] = {}
    for view in analysis.views:
        if view.point.complete or view.point.saturated_at is not None:
            label = f"{view.point.name}, output {view.point.output}"
            found.setdefault(label, []).append(view)
    return found


def _ratio(
    load: str, name: str, first: Floats, second: Floats, statistic: Callable[[Floats], Floats], better: int, rng: np.random.Generator
) -> Ratio:
    drawn = [statistic(_resampled(values, rng)) for values in (first, second)]
    low, high = np.quantile(drawn[1] / np.maximum(drawn[0], 1e-12), [0.025, 0.975])
    return Ratio(load, name, float(statistic(first)), float(statistic(second)), float(low), float(high), better)


def _resampled(values: Floats, rng: np.random.Generator) -> Floats:
    """Draw blocks of neighbours, because one moment with a queue delays many requests in a row."""
    length = -(-len(values) // BLOCKS)
    starts = rng.integers(len(values), size=(RESAMPLES, -(-len(values) // length)))
    drawn = (starts[:, :, None] + np.arange(length)) % len(values)
    return np.asarray(values[drawn.reshape(RESAMPLES, -1)[:, : len(values)]])


def as_csv(found: Comparison, margin: float) -> str:
    """Return one line per figure and per share, as plain numbers.

    The interval is that of B / A for a figure, and that of B - A for a share.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("load", "figure", "a", "b", "compared_by", "b_to_a", "low", "high", "verdict"))
    for one in found.ratios:
        verdict = _verdict(one.regressed(margin), one.improved(margin))
        writer.writerow((one.load, one.figure, one.a, one.b, "ratio", one.value, one.low, one.high, verdict))
    for each in found.shares:
        verdict = _verdict(each.regressed, each.improved)
        writer.writerow((each.load, each.figure, each.a, each.b, "difference", each.difference, each.low, each.high, verdict))
    return text.getvalue()


def _verdict(regressed: bool, improved: bool) -> str:  # noqa: FBT001 - the two cannot be confused
    return "regression" if regressed else "improvement" if improved else ""


def table(ratios: Sequence[Ratio], margin: float) -> str:
    """Return a Markdown table with one line per figure."""
    lines = ["| load | figure | A | B | B / A | 95 % interval | |", "|---|---|---|---|---|---|---|"]
    for one in ratios:
        word = _verdict(one.regressed(margin), one.improved(margin))
        scale, unit = UNITS.get(one.figure, (1000, "ms"))
        values = f"{one.a * scale:.1f} {unit} | {one.b * scale:.1f} {unit} | {one.value:.3f} | {one.low:.3f} to {one.high:.3f}"
        lines.append(f"| {one.load} | {one.figure} | {values} | {word} |")
    return "\n".join(lines)
