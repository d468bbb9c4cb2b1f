"""Finds the knee of a throughput curve with an interval, or why there is none. Pure and seeded.

The model is two straight lines that meet, in log2 of both axes. Throughput grows by one power of
the concurrency before the knee and by a smaller power after it. A bend is therefore as visible
between 1 and 2 as between 256 and 512. The interval is a bootstrap. It draws every point's
throughput from blocks of the point's window and shifts it by the misfit of the two lines with a
random sign. The interval therefore covers both chance and a curve that bends gradually.
"""

from collections.abc import Sequence

import attrs
import numpy as np

from benchmarks.analysis.steady_state import Floats

MIN_POINTS = 5
RESAMPLES = 400
GRID_STEP = 1 / 16
# Throughput must first grow by at least this power (doubling the load adds 23 %), then bend to less
# than half of the power.
MIN_GROWTH = 0.3
BEND = 0.5
# The share of resamples that may show no bend, and the widest useful interval: a factor of 4.
UNDECIDED_SHARE = 0.2
WIDEST_OCTAVES = 2.0
# With a single point behind the knee, the slope after it is free. This weight draws the slope to 0,
# a plateau.
PLATEAU_WEIGHT = 0.05


@attrs.frozen
class Knee:
    """The bend and its 95 % interval as concurrencies.

    Attributes:
        before: Power by which throughput grows before the knee.
        after: Power by which throughput grows after the knee.
    """

    concurrency: float
    low: float
    high: float
    before: float
    after: float


@attrs.frozen
class NoKnee:
    """The reason why no knee can be named."""

    reason: str


def find_knee(concurrency: Sequence[int], blocks: Sequence[Floats], seed: int = 0) -> Knee | NoKnee:
    """Find the knee, given a non-empty array of block throughputs for each concurrency."""
    if len(set(concurrency)) < MIN_POINTS:
        return NoKnee(f"a knee needs at least {MIN_POINTS} concurrencies, and {len(set(concurrency))} can be used")
    order = np.argsort(concurrency)
    x = np.log2(np.asarray(concurrency, dtype=np.float64)[order])
    means = np.array([np.mean(blocks[index]) for index in order])
    if np.any(means <= 0):
        return NoKnee("a point has no throughput")
    y = np.log2(means)
    at, before, after, misfit = _fit(x, y[None, :])
    drawn = _resample([blocks[index] for index in order], misfit[0], np.random.default_rng(seed))
    ats, befores, afters, _ = _fit(x, drawn)
    growth = float(befores.mean())
    if before[0] < MIN_GROWTH or growth < MIN_GROWTH:
        return NoKnee(
            f"throughput does not grow with the load (by a power of {before[0]:.2f} from {2 ** x[0]:g} on): "
            "it is already saturated at the lowest concurrency, or something else limits it"
        )
    bent = afters <= BEND * befores
    undecided = 1 - bent.mean() > UNDECIDED_SHARE
    # On a straight line the bend and the slope after it are arbitrary; the slope of the last two
    # points is certain.
    last = (y[-1] - y[-2]) / (x[-1] - x[-2])
    if max(after[0], last if undecided else -np.inf) > BEND * before[0]:
        return NoKnee(
            f"throughput still grows at concurrency {2 ** x[-1]:g} (by a power of {last:.2f}, before {before[0]:.2f}): measure higher loads"
        )
    if undecided:
        return NoKnee(f"the knee cannot be distinguished from noise: {1 - bent.mean():.0%} of the resamples show none")
    low, high = np.quantile(ats[bent], [0.025, 0.975])
    low, high = min(low, at[0]) - GRID_STEP / 2, max(high, at[0]) + GRID_STEP / 2
    if high - low > WIDEST_OCTAVES:
        return NoKnee(f"the knee lies anywhere between {2**low:.0f} and {2**high:.0f}: repeat the points or measure longer")
    return Knee(float(2 ** at[0]), float(2**low), float(2**high), float(before[0]), float(after[0]))


def _fit(x: Floats, rows: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the bend, the slopes before and after it, and the residuals of each row."""
    best = np.full(len(rows), np.inf)
    at, before, after = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
    left = np.zeros_like(rows)
    plateau = np.array([[0.0, 0.0, PLATEAU_WEIGHT]])
    # At least two points lie before the bend and one after it.
    for knee in np.arange(np.unique(x)[1], x[-1], GRID_STEP):
        design = np.column_stack([np.ones_like(x), np.minimum(x, knee), np.maximum(x - knee, 0.0)])
        inverse = np.linalg.pinv(np.vstack([design, plateau]))[:, : len(x)]
        found = rows @ inverse.T
        misfit = rows - found @ design.T
        error = (misfit**2).sum(axis=1) + (PLATEAU_WEIGHT * found[:, 2]) ** 2
        better = error < best
        best[better], at[better], before[better], after[better] = error[better], knee, found[better, 1], found[better, 2]
        left[better] = misfit[better]
    return at, before, after, left


def _resample(blocks: Sequence[Floats], misfit: Floats, rng: np.random.Generator) -> Floats:
    """Return log throughputs of bootstrap repetitions, one per row."""
    columns = []
    for values, missed in zip(blocks, misfit, strict=True):
        draws = rng.choice(values, (RESAMPLES, len(values))).mean(axis=1)
        # A mean of n draws from n blocks varies by (n-1)/n less than a mean of n new blocks does.
        spread = np.sqrt(len(values) / max(1, len(values) - 1))
        shifted = np.maximum(values.mean() + spread * (draws - values.mean()), 1e-9)
        columns.append(np.log2(shifted) + missed * rng.choice([-1.0, 1.0], RESAMPLES))
    return np.column_stack(columns)
