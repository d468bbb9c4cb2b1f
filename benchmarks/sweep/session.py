"""One run: opens the targets, measures every point, shows progress and keeps the recording."""

import asyncio
import datetime
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import msgspec

from benchmarks.analysis import report
from benchmarks.analysis.report import View
from benchmarks.arguments import say
from benchmarks.generator.hosts import Listener, WorkerPool, open_pool
from benchmarks.generator.processes import WorkerLost
from benchmarks.generator.run import Measured
from benchmarks.recording import storage
from benchmarks.recording.monitor import Monitor
from benchmarks.recording.provenance import digest, provenance
from benchmarks.recording.results import Goal, Point, Promise, Recording, Run, Sample
from benchmarks.sweep import generator_ceiling
from benchmarks.sweep.display import Display
from benchmarks.sweep.early_stop import run_until_saturated
from benchmarks.sweep.planner import History, Planner, Task
from benchmarks.sweep.resume import command_line, continued, read_earlier
from benchmarks.sweep.systems import INPROCESS, NO_ADMISSION, SystemUnderTest, TestBed, open_bench
from benchmarks.targets import TargetError
from benchmarks.targets.server import ClientOptions
from benchmarks.workload.plan import Load, PointPlan
from benchmarks.workload.requests import Fixed, Lengths, Texts, Workload
from llmserve import __version__

# Points that may lose a worker and are measured again.
MAX_LOST = 5
# A warm-up fills caches, connections and compilers. Long answers would only add time.
WARM_UP_TOKENS = 8


@attrs.frozen(kw_only=True)
class Settings:
    """Settings of a run; its planner decides the loads.

    Attributes:
        workers: Where workers connect, which are then the generators; None uses this host's processes.
        resume: Whether the run continues what an interrupted run wrote to `out`.
        stop_when_saturated: Whether an open loop ends once its rate is clearly above capacity.
    """

    targets: list[str]
    workload: Workload
    out: Path
    prompts: list[Lengths]
    model: str | None = None
    engine: str = "vllm"
    engine_args: dict[str, Any] = attrs.field(factory=dict)
    processes: int = 1
    vocabulary: int = 32_000
    warm_up: int = 4
    promise: Promise = attrs.field(factory=Promise)
    price_per_hour: float | None = None
    ceiling_seconds: float = 0.5
    admissions: tuple[str, ...] = (NO_ADMISSION,)
    client: ClientOptions = attrs.field(factory=ClientOptions)
    workers: Listener | None = None
    resume: bool = False
    goal: Goal | None = None
    stop_when_saturated: bool = False

    def job(self, task: Task, number: int, vocabulary: tuple[int, int]) -> PointPlan:
        """Return the work of a target's point; `number` counts the points of this target.

        It is independent of the target, and a repeat has other prompts.
        """
        workload = attrs.evolve(self.workload, prompt=task.prompt, vocabulary=vocabulary, seed=self.workload.seed + task.repeat)
        label = f"point {number}"
        return PointPlan(point=number, label=label, load=task.load, workload=workload, requests=task.requests, seconds=task.seconds)


async def run(settings: Settings, planner: Planner) -> int:
    """Measure all points and write the files after each; Ctrl-C keeps what was measured.

    Returns the exit code.
    """
    earlier = read_earlier(settings.out) if settings.resume else None
    if earlier is not None:
        workload = attrs.evolve(settings.workload, salt=earlier.run.workload.get("salt", ""))
        settings = attrs.evolve(settings, workload=workload)
    async with AsyncExitStack() as stack:
        workers = None
        if settings.workers is not None:
            workers = await stack.enter_async_context(open_pool(settings.workers, __version__, say))
        bench = await stack.enter_async_context(_open_bench(settings, workers))
        run = begin(settings, planner, bench)
        recording = Recording(run) if earlier is None else continued(earlier, run)
        if INPROCESS in settings.targets and settings.ceiling_seconds:
            recording.run.ceiling[INPROCESS] = await generator_ceiling.inprocess_tokens(settings.ceiling_seconds)
        code = 0
        try:
            with open_display() as display:
                await measure_all(bench.systems, settings, planner, recording, display)
        finally:
            # Without a measured point no file was written, and an older file of that name stays.
            if recording.run.points:
                text, code = planner.conclude(report.analyse(recording))
                print(text)
                print(f"written: {settings.out} and {storage.requests_path(settings.out).name}")
    return code


def _open_bench(settings: Settings, workers: WorkerPool | None) -> AbstractAsyncContextManager[TestBed]:
    return open_bench(
        settings.targets,
        model=settings.model,
        engine=settings.engine,
        engine_args=settings.engine_args,
        processes=settings.processes,
        vocabulary=settings.vocabulary,
        admissions=settings.admissions,
        promise=settings.promise,
        client=settings.client,
        adapters=[name for name, _ in settings.workload.adapters],
        workers=workers,
    )


@contextmanager
def open_display() -> Iterator[Display]:
    """Open the dashboard if stderr is a terminal and `rich` is installed, and otherwise lines."""
    if sys.stderr.isatty() and find_spec("rich") is not None:
        from benchmarks.sweep.dashboard import open_dashboard

        with open_dashboard() as dashboard:
            yield dashboard
    else:
        yield Display(sys.stderr)


async def measure_all(
    systems: Sequence[SystemUnderTest], settings: Settings, planner: Planner, recording: Recording, display: Display
) -> None:
    """Measure the planner's points until it has no more.

    Raises TargetError, also if too many points have lost a worker.
    """
    history, points, lost = History(), recording.run.points, 0
    for point in points:
        history.add(point, _view(recording, point))
    targets = {system.name: system for system in systems}
    while (task := planner.next(list(targets), history)) is not None:
        begun = len(points)
        number = sum(1 for point in points if point.target == task.target)
        system = targets[task.target]
        try:
            await measure(system, settings.job(task, number, system.vocabulary), settings, task.repeat, recording, display)
        except WorkerLost:
            lost += 1
            if not system.replaceable or lost == MAX_LOST:
                raise
        for point in points[begun:]:
            view = _view(recording, point)
            display.end(point, view)
            # A point that lost a worker is measured again, with new prompts.
            if not point.problem:
                history.add(point, view)


def _view(recording: Recording, point: Point) -> View | None:
    """Return the figures of a point; None if it has no requests."""
    alone = Recording(msgspec.structs.replace(recording.run, points=[point]), *recording.of(point))
    return next(iter(report.analyse(alone).views), None)


def begin(settings: Settings, planner: Planner, bench: TestBed) -> Run:
    """Return the run as it is before its first point."""
    workload = settings.workload
    facts = {field.name: getattr(workload, field.name) for field in attrs.fields(Workload)}
    facts |= {"prompt": [str(lengths) for lengths in settings.prompts], "output": str(workload.output), "turns": str(workload.turns)}
    facts["think"] = None if workload.think is None else str(workload.think)
    facts["prompts_with_images"] = sum(lengths.with_images for lengths in settings.prompts if isinstance(lengths, Texts))
    system = bench.systems[0]
    tasks = planner.foreseen([system.name for system in bench.systems])
    facts["digest"] = digest([settings.job(task, number, system.vocabulary) for number, task in enumerate(tasks)])
    return Run(
        command=command_line(),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        provenance=provenance(bench.machine, bench.engine, settings.engine_args, bench.model),
        workload=facts,
        promise=settings.promise,
        price_per_hour=settings.price_per_hour,
        search=settings.goal,
        memory=bench.memory,
    )


async def measure(system: SystemUnderTest, job: PointPlan, settings: Settings, repeat: int, recording: Recording, display: Display) -> None:
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
        display.start(point, job.planned)
        async with monitor.running():
            if settings.stop_when_saturated:
                point.saturated_at = await run_until_saturated(system, job, measured, display.progress)
            else:
                await system.run(job, measured, display.progress)
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
    point.planned = job.planned
    point.seconds = max(ends, default=0.0)
    point.client_cpu_seconds = measured.cpu_seconds
    point.loop_lag = measured.loop_lag
    point.complete, point.problem, point.workers = measured.complete, measured.problem, measured.workers


def execute(settings: Settings, planner: Planner) -> int:
    return asyncio.run(run(settings, planner))
