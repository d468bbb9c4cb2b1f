"""Derives each point's figures and validity, and each sweep's verdict, from a recording. Pure.

The terminal and the report pages both show these results, so they cannot differ.
"""

import itertools
from collections.abc import Sequence
from functools import cached_property

import attrs
import numpy as np

from benchmarks.analysis import capacity as capacities
from benchmarks.analysis.capacity import Capacity
from benchmarks.analysis.evidence import Evidence, gather
from benchmarks.analysis.saturation import Level, Saturation, saturation
from benchmarks.analysis.stages import Waterfall, waterfall
from benchmarks.analysis.steady_state import Floats, block_rates
from benchmarks.analysis.summary import Summary, summarize, table
from benchmarks.analysis.validity import faults
from benchmarks.recording.results import Point, Recording, RequestRecord, Sample


@attrs.frozen(kw_only=True)
class View:
    """One point with its figures.

    Attributes:
        traffic: All requests that were sent.
        records: The requests that count.
        faults: Reasons why the point is not valid.
    """

    point: Point
    traffic: list[RequestRecord]
    records: list[RequestRecord]
    samples: list[Sample]
    summary: Summary
    blocks: Floats
    waterfall: Waterfall | None
    evidence: Evidence
    faults: list[str]

    @property
    def valid(self) -> bool:
        return not self.faults


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


@attrs.define(slots=False)
class Analysis:
    """The analysis of one recording."""

    recording: Recording
    views: list[View]

    @property
    def rows(self) -> list[tuple[Point, Summary, list[str]]]:
        """Rows of the table."""
        return [(view.point, view.summary, view.faults) for view in self.views]

    @property
    def model(self) -> str:
        """The model's name, for a title."""
        told = self.recording.run.provenance
        return str((told.get("engine") or {}).get("model") or told.get("model") or "the model")

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
    def capacity(self) -> dict[str, Capacity]:
        """A step-time model for each target with enough loads."""
        engine = self.recording.run.provenance.get("engine") or {}
        found = {}
        for target in dict.fromkeys(view.point.target for view in self.views):
            observed = [_observe(view) for view in self.views if view.point.target == target and view.point.concurrency and view.valid]
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
            verdict = saturation(
                f"{self.model} ({target}, prompts of {prompt} tokens)", levels, self.recording.run.provenance.get("engine")
            )
        return Sweep(target=target, prompt=prompt, output=output, views=views, saturation=verdict)


def analyse(recording: Recording) -> Analysis:
    """Analyse all points with at least one request."""
    found = [(point, *recording.of(point)) for point in recording.run.points]
    return Analysis(recording, [_view(recording, *each) for each in found if each[1]])


def _view(recording: Recording, point: Point, records: list[RequestRecord], samples: list[Sample]) -> View:
    summary = summarize(records, open_loop=point.concurrency is None, promise=recording.run.promise)
    counted = [record for record in records if not record.lead]
    stages = waterfall(counted)
    return View(
        point=point,
        traffic=records,
        records=counted,
        samples=samples,
        summary=summary,
        blocks=block_rates(records, summary.window),
        waterfall=stages,
        evidence=gather(point, samples, summary.window),
        faults=faults(point, records, summary, stages, recording.run.ceiling.get(point.target)),
    )


def _level(concurrency: int, repeats: Sequence[View]) -> Level:
    """Combine the valid repeats: latencies and evidence of the first, throughput of all."""
    valid = [view for view in repeats if view.valid] or list(repeats[:1])
    return Level(
        concurrency=concurrency,
        summary=valid[0].summary,
        blocks=np.concatenate([view.blocks for view in valid]),
        evidence=valid[0].evidence,
        valid=any(view.valid for view in repeats),
    )


def _observe(view: View) -> capacities.Observed:
    load = capacities.Load(view.point.concurrency or 0, view.summary.prompt_tokens, view.summary.output_tokens)
    return capacities.observe(load, view.summary.tokens_per_second, view.traffic)


def conclusion(found: Analysis) -> str:
    """Return Markdown: the table of all points, then each sweep's verdict, evidence and advice."""
    verdicts = [sweep.saturation for sweep in found.sweeps if sweep.saturation is not None]
    texts = ["\n".join([each.verdict, "", *(f"- {line}" for line in (each.evidence, *each.advice))]) for each in verdicts]
    return "\n\n".join([table(found.rows), *texts])
