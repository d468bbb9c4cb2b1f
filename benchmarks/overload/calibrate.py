"""Fits a step law to a real engine, from the reports of its steps under loads of many shapes."""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import attrs
import numpy as np

from benchmarks.generator.run import Generator
from benchmarks.overload.laws import Law
from benchmarks.stand_ins.shared_engine import SharedEngine
from benchmarks.sweep.systems import middle
from benchmarks.targets.inprocess import InProcess
from benchmarks.workload.plan import Load, PointPlan
from benchmarks.workload.requests import Fixed, Workload
from llmserve import AdmissionConfig, EngineManager, ManagerConfig
from llmserve.engine import EngineStatistics
from llmserve.engines import create_engine

# (prompt, answer) in tokens: mostly decoding, mostly prefill, and a mix.
SHAPES = ((32, 128), (256, 64), (1024, 32), (3000, 16))


@attrs.frozen
class Step:
    """One step that directly followed another.

    Attributes:
        prefilled: Tokens of the prompts completed in the step.
        decoding: Number of decoding sequences.
        cached: Tokens in the cache.
    """

    seconds: float
    prefilled: int
    decoding: int
    cached: float


@attrs.define
class Recorder:
    """Records an engine's steps."""

    engine: SharedEngine
    steps: list[Step] = attrs.field(factory=list)
    _last: EngineStatistics = attrs.field(factory=EngineStatistics)

    def listen(self) -> None:
        self._last = self.engine.statistics()
        self.engine.watch(self._stepped)

    def _stepped(self) -> None:
        last, now = self._last, self.engine.statistics()
        self._last = now
        if now.busy_steps == last.busy_steps + 1:
            prefilled = now.prompt_tokens - last.prompt_tokens
            made = now.generation_tokens - last.generation_tokens
            cached = now.kv_usage * (self.engine.info.kv_cache_tokens or 0)
            self.steps.append(Step(now.busy_seconds - last.busy_seconds, prefilled, made, cached))


async def measure(
    model: str, engine_name: str, engine_args: dict[str, Any], concurrency: list[int], say: Callable[[str], None]
) -> list[Step]:
    """Measure each shape at each concurrency, in closed loops of a few turns."""
    engine = SharedEngine(create_engine(engine_name, model, engine_args))
    async with anyio.create_task_group() as tasks:
        await tasks.start(engine.inner.run)
        recorder = Recorder(engine)
        recorder.listen()
        async with EngineManager(engine, ManagerConfig(admission=AdmissionConfig(max_running=0))) as manager:
            for number, (prompt, output) in enumerate(SHAPES):
                for clients in concurrency:
                    if prompt + output > engine.info.max_model_len:
                        continue
                    workload = Workload(prompt=Fixed(prompt), output=Fixed(output), vocabulary=middle(engine.info.vocab_size))
                    load = Load(concurrency=clients, staggered=True)
                    job = PointPlan(point=number, label=f"calibrate {prompt} {clients}", load=load, workload=workload, requests=2 * clients)
                    before = len(recorder.steps)
                    await Generator(InProcess(manager), job, clock=time.monotonic).run()
                    mean = np.mean([step.seconds for step in recorder.steps[before:]]) if recorder.steps[before:] else math.nan
                    say(f"prompt {prompt}, concurrency {clients}: {len(recorder.steps) - before} steps of {mean * 1000:.2f} ms")
        tasks.cancel_scope.cancel()
    return recorder.steps


def fit(steps: list[Step]) -> Law:
    """Fit the law by medians, which the outliers of a shared host do not move.

    The measurement cannot separate the constant parts of the host and the weights, so the weights
    get one third. Attention and reading the cache are below what these loads show.
    """
    rows = np.array([attrs.astuple(step) for step in steps if step.decoding])
    seconds, prefilled, decoding, _ = rows.T
    plain = prefilled == 0
    few, many = plain & (decoding <= 8), plain & (decoding >= 0.5 * decoding[plain].max())
    base = float(np.median(seconds[few]))
    sequence = max(0.0, float((np.median(seconds[many]) - base) / np.median(decoding[many])))
    full = prefilled >= 0.5 * np.quantile(prefilled, 0.99)
    token = float(np.median((seconds[full] - base - sequence * decoding[full]) / prefilled[full])) if full.any() else sequence
    foretold = base + sequence * decoding[plain]
    ratios = seconds[plain] / foretold
    late = ratios > 2
    noise = 1.4826 * np.median(np.abs(np.log(ratios) - np.median(np.log(ratios))))
    return Law(
        weights=base / 3,
        host=base * 2 / 3,
        kv=0.0,
        sequence=sequence,
        flops=token,
        attention=0.0,
        noise=float(noise),
        hiccup_chance=float(late.mean()),
        hiccup_seconds=float(np.median(seconds[plain][late] - foretold[late])) if late.any() else 0.0,
    )


def write(path: Path, steps: list[Step], law: Law) -> None:
    rows = [attrs.astuple(step) for step in steps]
    path.write_text(json.dumps({"law": attrs.asdict(law), "steps": rows}))
    print(f"written: {path}", file=sys.stderr)
