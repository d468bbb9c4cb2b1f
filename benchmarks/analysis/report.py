"""Derives each point's figures and validity, and each sweep's verdict, from a recording. Pure.

The terminal and the report pages both show these results, so they cannot differ.
"""

import itertools
import random
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import attrs
import msgspec
import numpy as np

from benchmarks.analysis import capacity as capacities
from benchmarks.analysis import remarks
from benchmarks.analysis.backlog import STEADY_PATTERNS, Backlog
from benchmarks.analysis.capacity import Capacity
from benchmarks.analysis.evidence import Evidence, Level, gather
from benchmarks.analysis.figures import Figures, WholeSummary, figures, pack, unpack
from benchmarks.analysis.rates import RateLevel, RateSaturation, above_capacity, rate_saturation, state
from benchmarks.analysis.saturation import Saturation, saturation
from benchmarks.analysis.stages import Waterfall
from benchmarks.analysis.steady_state import Floats
from benchmarks.analysis.summary import Summary
from benchmarks.analysis.table import markdown
from benchmarks.recording.results import Point, Recording, RequestRecord, Run, Sample


@attrs.frozen(kw_only=True)
class View:
    """One point with its figures, as in `Figures`.

    Attributes:
        traffic: The recorded requests: all that were sent, or a sample of them.
    """

    point: Point
    traffic: list[RequestRecord]
    samples: list[Sample]
    evidence: Evidence
    sent: int
    offered: float
    summary: Summary
    blocks: list[float]
    waterfall: Waterfall | None
    times: dict[str, list[int]]
    faults: list[str]
    backlog: Backlog | None
    within: list[int]

    @property
    def valid(self) -> bool:
        return not self.faults

    @property
    def state(self) -> str | None:
        """What an open loop's rate does to the server, as in `RateLevel`; None for other loads."""
        return None if self.backlog is None else state(self.summary, self.backlog)

    @property
    def unserved(self) -> str | None:
        """Return how the server failed to serve an open loop's rate, with figures; None if it served it."""
        return None if self.backlog is None else above_capacity(self.summary, self.backlog)

    def seconds(self, name: str) -> Floats:
        """Return the latency of each request, by the name of the distribution."""
        return np.asarray(self.times[name]) / 1e9


@attrs.frozen(kw_only=True)
class Sweep:
    """Closed loops on one target with requests of one shape, sorted by concurrency, then repeat."""

    target: str
    prompt: str
    output: str
    views: list[View]
    saturation: Saturation | None

    @property
    def name(self) -> str:
        return f"{self.target}, prompt {self.prompt}"


@attrs.frozen(kw_only=True)
class RateSweep:
    """Open loops of one pattern on one target with requests of one shape, sorted by rate."""

    target: str
    prompt: str
    output: str
    pattern: str
    views: list[View]
    saturation: RateSaturation | None


@attrs.define(slots=False)
class Analysis:
    recording: Recording
    views: list[View]
    whole: WholeSummary | None = None

    @property
    def sent(self) -> int:
        """Number of requests that were sent; a recording with a summary has a sample of them."""
        return sum(view.sent for view in self.views)

    @property
    def remarks(self) -> dict[str, list[str]]:
        """Lines about failed requests and about how answers were counted, by heading."""
        return remarks.lists([(view.point, view.summary.failures, view.summary.remarks) for view in self.views])

    @property
    def model(self) -> str:
        """The model's name, for a title."""
        told = self.recording.run.provenance
        return str((told.get("engine") or {}).get("model") or told.get("model") or "the model")

    def engine(self, target: str) -> dict[str, Any] | None:
        """Return the description of a target's engine; None for a URL, behind which any engine may be."""
        return None if re.match(r"https?://", target) else self.recording.run.provenance.get("engine")

    @cached_property
    def sweeps(self) -> list[Sweep]:
        """Sweeps in the order of measurement."""
        closed = [view for view in self.views if view.point.concurrency]
        keys = list(dict.fromkeys((view.point.target, view.point.prompt, view.point.output) for view in closed))
        return [
            self._sweep(*key, [view for view in closed if (view.point.target, view.point.prompt, view.point.output) == key]) for key in keys
        ]

    @cached_property
    def open_loops(self) -> list[View]:
        return [view for view in self.views if not view.point.concurrency]

    @cached_property
    def rate_sweeps(self) -> list[RateSweep]:
        """Open loops with one rate each, by target, lengths and pattern, in the order of measurement."""
        groups: dict[tuple[str, str, str, str], list[View]] = {}
        for view in self.open_loops:
            if view.point.pattern in STEADY_PATTERNS:
                point = view.point
                groups.setdefault((point.target, point.prompt, point.output, point.pattern), []).append(view)
        return [self._rate_sweep(*key, views) for key, views in groups.items()]

    def _rate_sweep(self, target: str, prompt: str, output: str, pattern: str, views: list[View]) -> RateSweep:
        views = sorted(views, key=lambda view: (view.point.rate or 0.0, view.point.repeat))
        rates = [list(repeats) for _, repeats in itertools.groupby(views, key=lambda view: view.point.rate)]
        verdict = None
        if len(rates) > 1:
            levels = [level for repeats in rates if (level := _rate_level(repeats)) is not None]
            name = f"{self.model} ({target}, prompts of {prompt} tokens, {pattern} arrivals)"
            verdict = rate_saturation(name, levels, len(rates) - len(levels), self.engine(target))
        return RateSweep(target=target, prompt=prompt, output=output, pattern=pattern, views=views, saturation=verdict)

    @cached_property
    def capacity(self) -> dict[str, Capacity]:
        """A step-time model for each target with enough loads."""
        if self.whole is not None:
            return self.whole.capacity
        found = {}
        for target in dict.fromkeys(view.point.target for view in self.views):
            observed = [_observe(view) for view in self.views if view.point.target == target and view.point.concurrency and view.valid]
            engine = self.engine(target) or {}
            model = capacities.capacity(observed, engine.get("max_num_seqs"), engine.get("kv_cache_tokens"))
            if model is not None:
                found[target] = model
        return found

    def _sweep(self, target: str, prompt: str, output: str, views: list[View]) -> Sweep:
        views = sorted(views, key=lambda view: (view.point.concurrency or 0, view.point.repeat))
        levels = [
            _level(concurrency, list(repeats))
            for concurrency, repeats in itertools.groupby(views, key=lambda view: view.point.concurrency or 0)
        ]
        verdict = None
        if len(levels) > 1:
            verdict = saturation(f"{self.model} ({target}, prompts of {prompt} tokens)", levels, self.engine(target))
        return Sweep(target=target, prompt=prompt, output=output, views=views, saturation=verdict)


def analyse(recording: Recording) -> Analysis:
    """Analyse all points with at least one request. Raises UnreadableRun."""
    whole = unpack(recording.summary) if recording.summary else None
    found = [(point, *recording.of(point)) for point in recording.run.points]
    return Analysis(recording, [_view(recording.run, whole, *each) for each in found if each[1]], whole)


def _view(run: Run, whole: WholeSummary | None, point: Point, records: list[RequestRecord], samples: list[Sample]) -> View:
    derived = figures(run, point, records) if whole is None else whole.points[point.number]
    fields = {name: getattr(derived, name) for name in derived.__struct_fields__}
    return View(point=point, traffic=records, samples=samples, evidence=gather(point, samples, derived.summary.window), **fields)


def sample(recording: Recording, per_point: int, seed: int) -> Recording:
    """Keep at most `per_point` random requests of each point, and the figures of all."""
    analysis, rng = analyse(recording), random.Random(seed)
    kept = [record for view in analysis.views for record in rng.sample(view.traffic, min(per_point, len(view.traffic)))]
    points = {view.point.number: Figures(**{name: getattr(view, name) for name in Figures.__struct_fields__}) for view in analysis.views}
    return msgspec.structs.replace(recording, records=kept, summary=pack(WholeSummary(points, analysis.capacity)))


def _level(concurrency: int, repeats: Sequence[View]) -> Level:
    """Combine the valid repeats: latencies and evidence of the first, throughput of all."""
    valid = [view for view in repeats if view.valid] or list(repeats[:1])
    return Level(
        concurrency=concurrency,
        summary=valid[0].summary,
        tokens_per_second=max(view.summary.tokens_per_second for view in valid),
        blocks=np.concatenate([view.blocks for view in valid]),
        evidence=valid[0].evidence,
        valid=any(view.valid for view in repeats),
    )


def _rate_level(repeats: Sequence[View]) -> RateLevel | None:
    """Combine the valid repeats; the state is that of most of them, or undecided."""
    valid = [(view, view.backlog) for view in repeats if view.valid and view.backlog is not None]
    if not valid:
        return None
    (view, backlog), states = valid[0], [state(view.summary, backlog) for view, backlog in valid]
    common = max(dict.fromkeys(states), key=states.count)
    return RateLevel(
        rate=view.point.rate or 0.0,
        sent=float(np.mean([backlog.sent for _, backlog in valid])),
        served=[rate for _, backlog in valid for rate in backlog.served],
        state=common if 2 * states.count(common) > len(states) else "undecided",
        backlog=backlog,
        summary=view.summary,
        tokens_per_second=max(each.summary.tokens_per_second for each, _ in valid),
        evidence=view.evidence,
    )


def _observe(view: View) -> capacities.Observed:
    load = capacities.Load(view.point.concurrency or 0, view.summary.prompt_tokens, view.summary.output_tokens)
    return capacities.observe(load, view.summary.tokens_per_second, view.traffic)


def conclusion(found: Analysis) -> str:
    """Return Markdown: the table of all points, failures and remarks, then each sweep's verdict and advice."""
    swept: list[Sweep | RateSweep] = [*found.sweeps, *found.rate_sweeps]
    verdicts = [sweep.saturation for sweep in swept if sweep.saturation is not None]
    texts = ["\n".join([each.verdict, "", *(f"- {line}" for line in (each.evidence, *each.advice))]) for each in verdicts]
    said = ["\n".join([f"{head}:", "", *(f"- {line}" for line in lines)]) for head, lines in found.remarks.items()]
    return "\n\n".join([markdown(found), *said, *texts])
