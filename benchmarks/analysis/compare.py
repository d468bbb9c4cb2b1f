"""Compares two runs load by load: ratios with intervals, and regressions. Pure and seeded.

A figure has regressed if its whole 95 % interval lies beyond the margin on the worse side. A bad
mean with a wide interval is no regression, and neither is a certain change of 0.1 %.
"""

from collections.abc import Callable, Sequence

import attrs
import numpy as np

from benchmarks.analysis.report import Analysis, View
from benchmarks.analysis.steady_state import Floats

RESAMPLES = 1000
MARGIN = 0.05


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
)


def compare(a: Analysis, b: Analysis, seed: int = 0) -> list[Ratio]:
    """Compare all loads of equal target, lengths and pattern; repeats are pooled."""
    found = []
    ours, theirs = _by_load(a), _by_load(b)
    for load in ours:
        if load in theirs:
            rng = np.random.default_rng(seed)
            for name, sample, statistic, better, least in FIGURES:
                first, second = (np.concatenate([sample(view) for view in views]) for views in (ours[load], theirs[load]))
                if min(len(first), len(second)) >= least and statistic(first) > 0:
                    found.append(_ratio(load, name, first, second, statistic, better, rng))
    return found


def _by_load(analysis: Analysis) -> dict[str, list[View]]:
    found: dict[str, list[View]] = {}
    for view in analysis.views:
        if view.point.complete:
            label = f"{view.point.target}, {view.point.load}, prompt {view.point.prompt}, output {view.point.output}"
            found.setdefault(label, []).append(view)
    return found


def _ratio(
    load: str, name: str, first: Floats, second: Floats, statistic: Callable[[Floats], Floats], better: int, rng: np.random.Generator
) -> Ratio:
    drawn = [statistic(rng.choice(values, (RESAMPLES, len(values)))) for values in (first, second)]
    low, high = np.quantile(drawn[1] / np.maximum(drawn[0], 1e-12), [0.025, 0.975])
    return Ratio(load, name, float(statistic(first)), float(statistic(second)), float(low), float(high), better)


def table(ratios: Sequence[Ratio], margin: float) -> str:
    """Return a Markdown table with one line per figure."""
    lines = ["| load | figure | A | B | B / A | 95 % interval | |", "|---|---|---|---|---|---|---|"]
    for one in ratios:
        word = "regression" if one.regressed(margin) else "improvement" if one.improved(margin) else ""
        scale, unit = (1, "tok/s") if one.figure == "throughput" else (1000, "ms")
        values = f"{one.a * scale:.1f} {unit} | {one.b * scale:.1f} {unit} | {one.value:.3f} | {one.low:.3f} to {one.high:.3f}"
        lines.append(f"| {one.load} | {one.figure} | {values} | {word} |")
    return "\n".join(lines)
