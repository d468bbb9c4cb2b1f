"""One run: opens the targets, measures every point, shows progress and keeps the recording."""

import asyncio
import datetime
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
from tqdm import tqdm

from benchmarks.analysis import report
from benchmarks.arguments import recorded_command
from benchmarks.generator.run import Measured, Progress
from benchmarks.recording import storage
from benchmarks.recording.monitor import Monitor
from benchmarks.recording.provenance import digest, provenance
from benchmarks.recording.results import Point, Promise, Recording, Run, Sample
from benchmarks.sweep import generator_ceiling
from benchmarks.sweep.systems import INPROCESS, NO_ADMISSION, SystemUnderTest, TestBed, open_bench
from benchmarks.targets import TargetError
from benchmarks.targets.server import ClientOptions
from benchmarks.workload.plan import Load, PointPlan
from benchmarks.workload.requests import Fixed, Lengths, Workload

# A warm-up fills caches, connections and compilers. Long answers would only add time.
WARM_UP_TOKENS = 8


@attrs.frozen(kw_only=True)
class Settings:
    """Settings of a run.

    Attributes:
        requests: Minimum number of requests in a closed loop.
        per_client: Minimum number of requests per client in a closed loop.
        seconds: Duration of an open loop.
    """

    targets: list[str]
    loads: list[Load]
    workload: Workload
    out: Path
    prompts: list[Lengths]
    model: str | None = None
    engine: str = "vllm"
    engine_args: dict[str, Any] = attrs.field(factory=dict)
    processes: int = 1
    vocabulary: int = 32_000
    requests: int = 32
    per_client: int = 4
    seconds: float = 30.0
    warm_up: int = 4
    repeats: int = 1
    promise: Promise = attrs.field(factory=Promise)
    ceiling_seconds: float = 0.5
    admissions: tuple[str, ...] = (NO_ADMISSION,)
    client: ClientOptions = attrs.field(factory=ClientOptions)

    def jobs(self, vocabulary: tuple[int, int]) -> Iterator[tuple[int, PointPlan]]:
        """Yield (repeat, job) for every load at every prompt length; independent of the target.

        A repeat runs after all other points, so that it meets the machine in a different state.
        """
        rounds = itertools.product(range(self.repeats), self.prompts, self.loads)
        for number, (repeat, prompt, load) in enumerate(rounds):
            workload = attrs.evolve(self.workload, prompt=prompt, vocabulary=vocabulary, seed=self.workload.seed + repeat)
            requests = max(self.requests, (load.concurrency or 0) * self.per_client)
            label = f"point {number}"
            yield repeat, PointPlan(point=number, label=label, load=load, workload=workload, requests=requests, seconds=self.seconds)


async def run(settings: Settings) -> int:
    """Measure all points and write the files after each; Ctrl-C keeps what was measured.

    Returns the exit code.
    """
    async with open_bench(
        settings.targets,
        model=settings.model,
        engine=settings.engine,
        engine_args=settings.engine_args,
        processes=settings.processes,
        vocabulary=settings.vocabulary,
        admissions=settings.admissions,
        promise=settings.promise,
        client=settings.client,
    ) as bench:
        recording = Recording(begin(settings, bench))
        if INPROCESS in settings.targets and settings.ceiling_seconds:
            recording.run.ceiling[INPROCESS] = await generator_ceiling.inprocess_tokens(settings.ceiling_seconds)
        try:
            for repeat, job in settings.jobs(bench.systems[0].vocabulary):
                # All targets measure a point before the next point, so that drift affects all of
                # them alike.
                for system in bench.systems:
                    await measure(system, job, settings, repeat, recording)
        finally:
            # Without a measured point no file was written, and an older file of that name stays.
            if recording.run.points:
                print(report.conclusion(report.analyse(recording)))
                print(f"written: {settings.out} and {storage.requests_path(settings.out).name}")
    return 0


def begin(settings: Settings, bench: TestBed) -> Run:
    """Return the run as it is before its first point."""
    workload = settings.workload
    facts = {field.name: getattr(workload, field.name) for field in attrs.fields(Workload)}
    facts |= {"prompt": [str(lengths) for lengths in settings.prompts], "output": str(workload.output), "turns": str(workload.turns)}
    facts["digest"] = digest([job for _, job in settings.jobs(bench.systems[0].vocabulary)])
    return Run(
        command=recorded_command(sys.argv[1:]),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        provenance=provenance(bench.machine, bench.engine, settings.engine_args, bench.model),
        workload=facts,
        promise=settings.promise,
        memory=bench.memory,
    )


async def measure(system: SystemUnderTest, job: PointPlan, settings: Settings, repeat: int, recording: Recording) -> None:
    """Measure one point on one target, after a warm-up with different prompts.

    Raises TargetError when the warm-up brings only errors.
    """
    point = Point(
        number=len(recording.run.points),
        target=system.name,
        concurrency=job.load.concurrency,
        rate=job.load.mean_rate(job.seconds),
        pattern=job.load.pattern,
        prompt=str(job.workload.prompt),
        output=str(job.workload.output),
        repeat=repeat,
        processes=system.processes,
    )
    job = attrs.evolve(job, point=point.number, salt=system.name)
    warmed = Measured()
    await system.run(warm_up(job, settings.warm_up), warmed, lambda _: None)
    if all(record.outcome in ("error", "connection") for record in warmed.records):
        detail = " ".join(next((record.detail for record in warmed.records), "no request was sent").split())
        raise TargetError(f"{system.name} does not answer requests: {detail}")
    measured, monitor = Measured(), Monitor(point.number, system.read)
    recording.run.points.append(point)
    try:
        with _bar(point, job.planned) as show:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(monitor.run)
                await system.run(job, measured, show)
                tasks.cancel_scope.cancel()
    finally:
        _conclude(point, job, measured)
        recording.records += measured.records
        samples = monitor.since(measured.origin)
        recording.samples += samples
        _note_peak(recording.run, samples)
        storage.write(settings.out, recording)


def warm_up(job: PointPlan, requests: int) -> PointPlan:
    """Return the warm-up job: as many clients (open loop: four), new prompts, short answers."""
    clients = job.load.concurrency or 4
    workload = attrs.evolve(job.workload, output=Fixed(WARM_UP_TOKENS), turns=Fixed(1), cancelling=0.0)
    load = Load(concurrency=clients)
    return attrs.evolve(job, label=f"warm-up {job.label}", load=load, workload=workload, requests=max(requests, clients))


def _note_peak(run: Run, samples: list[Sample]) -> None:
    if run.memory is not None:
        found = [size for sample in samples if (size := sample.vram or sample.rss) is not None]
        run.memory.peak = max([*found, run.memory.peak or 0]) or None


def _conclude(point: Point, job: PointPlan, measured: Measured) -> None:
    ends = [record.finished for record in measured.records if record.finished is not None]
    lags = sorted(measured.lags)
    point.planned = job.planned
    point.seconds = max(ends, default=0.0)
    point.client_cpu_seconds = measured.cpu_seconds
    point.loop_lag = lags[int(0.99 * (len(lags) - 1))] if lags else None
    point.complete = measured.complete


@contextmanager
def _bar(point: Point, planned: int) -> Iterator[Any]:
    name = f"{point.target}, {point.load}, prompt {point.prompt}"
    with tqdm(total=planned, desc=name, unit="req", file=sys.stderr, dynamic_ncols=True) as bar:

        def show(progress: Progress) -> None:
            elapsed = bar.format_dict["elapsed"] or 1.0
            ttft = f"{progress.ttft * 1000:.0f} ms" if progress.ttft is not None else "-"
            bar.set_postfix_str(f"{progress.tokens / elapsed:.0f} tok/s, {progress.in_flight} in flight, TTFT {ttft}", refresh=False)
            bar.update(progress.done - bar.n)

        yield show


def execute(settings: Settings) -> int:
    return asyncio.run(run(settings))
