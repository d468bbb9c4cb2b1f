"""Fits the time of an engine step from a run, and predicts loads that were not measured.

    step = base + per_sequence * batch + per_prefill_token * prompt tokens computed + per_kv_token * tokens in the cache

Every gap between two deliveries of a request is one step, or as many steps as the gap brought
tokens. The other requests' records show what else was in the step. The coefficients are never
negative. A prediction for a concurrency of N is the mean step of the resulting batch: one request
joins for each that leaves, so a step holds batch / output prompts.

Each load is predicted from all other loads, to judge the model on data that it was not fitted to.
The baseline is a straight line between the load's neighbours, in logarithms.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import attrs
import numpy as np

from benchmarks.analysis.steady_state import Floats
from benchmarks.recording.results import RequestRecord

MAX_GAPS = 1500
TERMS = 4
MIN_LOADS = 3
# A prediction that is off by more on average is none.
MAX_ERROR = 0.25


@attrs.frozen
class Load:
    """A closed loop: its concurrency, and its mean lengths in tokens."""

    concurrency: int
    prompt: float
    output: float


@attrs.frozen
class Observed:
    """A measured load.

    Attributes:
        tokens_per_second: Measured throughput.
        steps: Rows of (1, batch, prefill tokens, cached tokens).
        seconds: Time of each row's step.
    """

    load: Load
    tokens_per_second: float
    steps: Floats
    seconds: Floats


@attrs.frozen
class StepTime:
    """Step time in seconds: base, and costs of a sequence, a prompt token and a cached token."""

    base: float
    per_sequence: float
    per_prefill_token: float
    per_kv_token: float
    max_num_seqs: int | None = None
    kv_cache_tokens: int | None = None

    def tokens_per_second(self, load: Load) -> float:
        """Return the throughput of a closed loop in steady state."""
        held = load.prompt + load.output / 2
        batch = float(min(load.concurrency, self.max_num_seqs or load.concurrency))
        if self.kv_cache_tokens:
            batch = max(1.0, min(batch, self.kv_cache_tokens / held))
        return batch / self.seconds(batch, batch / load.output * load.prompt, batch * held)

    def seconds(self, batch: float, prefill: float, cached: float) -> float:
        return self.base + self.per_sequence * batch + self.per_prefill_token * prefill + self.per_kv_token * cached


@attrs.frozen
class HeldOut:
    """One load, predicted without its own data, in tokens per second.

    Attributes:
        naive: The interpolated prediction, or None where the load has too few neighbours.
    """

    load: Load
    measured: float
    predicted: float
    naive: float | None

    @property
    def error(self) -> float:
        """Signed error, relative to the measured value."""
        return self.predicted / self.measured - 1

    @property
    def naive_error(self) -> float | None:
        return None if self.naive is None else self.naive / self.measured - 1


@attrs.frozen
class Capacity:
    """The model of a run, and its errors on held-out loads."""

    model: StepTime
    held_out: list[HeldOut]

    @property
    def error(self) -> float:
        """Mean absolute relative error."""
        return float(np.mean([abs(one.error) for one in self.held_out]))

    @property
    def naive_error(self) -> float | None:
        """Mean absolute relative error of interpolation, over the loads that it covers."""
        errors = [abs(one.naive_error) for one in self.held_out if one.naive_error is not None]
        return float(np.mean(errors)) if errors else None

    @property
    def trusted(self) -> Literal["model", "line"] | None:
        """What predicts held-out loads better, the model or the straight line; None if neither does."""
        covered = [abs(one.error) for one in self.held_out if one.naive is not None]
        line = self.naive_error
        if line is not None and line < np.mean(covered):
            return "line" if line <= MAX_ERROR else None
        return "model" if self.error <= MAX_ERROR else None

    def interpolate(self, load: Load) -> float | None:
        """Return the straight line's throughput at a load; None if the run has no line to it."""
        return _interpolated(load, [(one.load, one.measured) for one in self.held_out])


def observe(load: Load, tokens_per_second: float, records: Sequence[RequestRecord], seed: int = 0) -> Observed:
    """Return the steps of one point, at most 1500 of them, drawn at random."""
    answered = [record for record in records if len(record.deliveries) > 1]
    pairs = [gap for record in answered for gap in record.gaps()]
    gaps = np.asarray(pairs, dtype=np.float64).reshape(-1, 3)
    if len(gaps) > MAX_GAPS:
        gaps = gaps[np.random.default_rng(seed).choice(len(gaps), MAX_GAPS, replace=False)]
    begin, end, count = gaps[:, 0, None], gaps[:, 1, None], gaps[:, 2]
    middle = (begin + end) / 2
    first = np.array([record.deliveries[0][0] for record in answered])
    last = np.array([record.deliveries[-1][0] for record in answered])
    began = np.array([record.engine_scheduled if record.engine_scheduled is not None else record.dispatched or 0.0 for record in answered])
    prompt = np.array([float(record.prompt_tokens) for record in answered])
    output = np.array([float(record.completion_tokens) for record in answered])
    decoding = (first <= middle) & (middle < last)
    done = np.clip((middle - first) / np.maximum(last - first, 1e-9), 0, 1) * output
    overlap = np.clip(np.minimum(end, first) - np.maximum(begin, np.minimum(began, first - 1e-6)), 0, None)
    prefill = (prompt * overlap / np.maximum(first - began, 1e-6)).sum(axis=1)
    columns = [np.ones(len(gaps)), decoding.sum(axis=1), prefill / count, (decoding * (prompt + done)).sum(axis=1)]
    return Observed(load, tokens_per_second, np.column_stack(columns), (end - begin)[:, 0] / count)


def fit(observed: Sequence[Observed], max_num_seqs: int | None = None, kv_cache_tokens: int | None = None) -> StepTime:
    """Fit by least squares of relative errors, with equal weights and no negative coefficient."""
    kept = [one for one in observed if len(one.seconds)]
    weights = np.concatenate([np.full(len(one.seconds), 1 / (one.seconds.mean() * np.sqrt(len(one.seconds)))) for one in kept])
    rows = np.concatenate([one.steps for one in kept]) * weights[:, None]
    seconds = np.concatenate([one.seconds for one in kept]) * weights
    best, found = np.inf, np.zeros(TERMS)
    # There are 16 subsets of four terms. The best one without a negative coefficient is the
    # non-negative optimum.
    for size in range(1, TERMS + 1):
        for chosen in itertools.combinations(range(TERMS), size):
            part, *_ = np.linalg.lstsq(rows[:, chosen], seconds, rcond=None)
            error = float(((rows[:, chosen] @ part - seconds) ** 2).sum())
            if error < best and np.all(part >= 0):
                best, found = error, np.zeros(TERMS)
                found[list(chosen)] = part
    base, sequence, prefill, cached = (float(value) for value in found)
    return StepTime(base, sequence, prefill, cached, max_num_seqs, kv_cache_tokens)


def capacity(observed: Sequence[Observed], max_num_seqs: int | None = None, kv_cache_tokens: int | None = None) -> Capacity | None:
    """Fit and check the model; None for fewer than three loads, because it could not be checked.

    A load's repeats are held out together.
    """
    held_out = []
    for one in observed:
        others = [other for other in observed if other.load.concurrency != one.load.concurrency or not _alike(other.load, one.load)]
        if len({other.load for other in others}) < MIN_LOADS - 1:
            return None
        model = fit(others, max_num_seqs, kv_cache_tokens)
        naive = _interpolated(one.load, [(other.load, other.tokens_per_second) for other in others])
        held_out.append(HeldOut(one.load, one.tokens_per_second, model.tokens_per_second(one.load), naive))
    return Capacity(fit(observed, max_num_seqs, kv_cache_tokens), held_out) if held_out else None


def _interpolated(load: Load, measured: Sequence[tuple[Load, float]]) -> float | None:
    """Interpolate along the one axis on which the measured loads differ.

    The axis is the concurrency at these lengths, or the prompt length at this concurrency.
    """
    along = [(float(one.concurrency), rate) for one, rate in measured if _alike(one, load)]
    at: float = load.concurrency
    if len({x for x, _ in along}) < 2:
        along = [(one.prompt, rate) for one, rate in measured if one.concurrency == load.concurrency]
        at = load.prompt
    places = sorted({x for x, _ in along})
    if len(places) < 2:
        return None
    x, y = np.log(places), np.log([np.mean([rate for place, rate in along if place == x]) for x in places])
    # Outside the measured range, extrapolate the line through the nearest two points.
    index = int(np.clip(np.searchsorted(x, np.log(at)) - 1, 0, len(x) - 2))
    slope = (y[index + 1] - y[index]) / (x[index + 1] - x[index])
    return float(np.exp(y[index] + slope * (np.log(at) - x[index])))


def _alike(one: Load, other: Load) -> bool:
    return abs(one.prompt - other.prompt) <= 0.05 * other.prompt and abs(one.output - other.output) <= 0.05 * other.output
