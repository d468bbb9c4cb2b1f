"""Systems under test: opened once for a run, then loaded with one job after another."""

import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import anyio
import attrs

from benchmarks.analysis.memory import read_shape
from benchmarks.generator.hosts import WorkerPool
from benchmarks.generator.processes import Fleet, open_fleet
from benchmarks.generator.run import Generator, Measured, Progress
from benchmarks.recording.machine import Machine
from benchmarks.recording.monitor import Read, manager_source, metrics_source
from benchmarks.recording.results import Memory, Promise
from benchmarks.stand_ins.admission_policies import make
from benchmarks.stand_ins.contender import Setup
from benchmarks.stand_ins.shared_engine import SharedEngine
from benchmarks.targets import TargetError
from benchmarks.targets.inprocess import InProcess
from benchmarks.targets.local_server import Timelines, serve_here
from benchmarks.targets.server import ClientOptions, find_model, open_session, parse_server, without_credentials
from benchmarks.targets.tokenizer import load_vocabulary
from benchmarks.workload.plan import PointPlan
from llmserve import SLO, AdmissionConfig, EngineManager, ManagerConfig
from llmserve.engines import ENGINES, create_engine
from llmserve.models import BUNDLED, resolve

INPROCESS, HERE = "inprocess", "http"
# Without admission, a run measures the engine under the requested load.
NO_ADMISSION = "none"


class SystemUnderTest(Protocol):
    """One target under load.

    Attributes:
        processes: Generator processes that the target has, or 0 if it has none.
        replaceable: Whether a generator process that is lost may be replaced by another one.
        read: Reads the engine's current figures.
    """

    @property
    def name(self) -> str: ...

    @property
    def processes(self) -> int: ...

    @property
    def replaceable(self) -> bool: ...

    @property
    def vocabulary(self) -> tuple[int, int]: ...

    @property
    def read(self) -> Read: ...

    async def run(self, job: PointPlan, measured: Measured, show: Callable[[Progress], None]) -> None:
        """Run a job, and fill in `measured` even if cancelled."""


@attrs.define
class InProcessSystem:
    """The manager, loaded from its own event loop."""

    manager: EngineManager
    vocabulary: tuple[int, int]
    read: Read
    name: str = INPROCESS
    processes: int = 0
    replaceable: bool = False

    async def run(self, job: PointPlan, measured: Measured, show: Callable[[Progress], None]) -> None:
        await Generator(InProcess(self.manager), job, Progress(changed=show), measured, clock=time.monotonic).run()


@attrs.define
class FleetSystem:
    """A server, loaded from separate processes.

    Attributes:
        timelines: What the engine recorded, where the server is ours.
    """

    name: str
    fleet: Fleet
    vocabulary: tuple[int, int]
    read: Read
    timelines: Timelines | None = None

    @property
    def processes(self) -> int:
        return self.fleet.processes

    @property
    def replaceable(self) -> bool:
        return self.fleet.replaceable

    async def run(self, job: PointPlan, measured: Measured, show: Callable[[Progress], None]) -> None:
        try:
            await self.fleet.run(job, measured, show)
        finally:
            if self.timelines is not None:
                self.timelines.join(measured.records, measured.origin)


@attrs.define
class TestBed:
    """All systems of a run, the engine's description, and its memory.

    Attributes:
        model: The model's name, as the servers call it.
    """

    systems: list[SystemUnderTest]
    model: str | None = None
    engine: dict[str, Any] | None = None
    memory: Memory | None = None
    machine: Machine = attrs.field(factory=Machine)


@asynccontextmanager
async def open_bench(
    targets: list[str],
    *,
    model: str | None,
    engine: str,
    engine_args: dict[str, Any],
    processes: int,
    vocabulary: int,
    admissions: Sequence[str] = (NO_ADMISSION,),
    promise: Promise = Promise(),  # noqa: B008 - frozen
    client: ClientOptions = ClientOptions(),  # noqa: B008 - frozen
    adapters: Sequence[str] = (),
    workers: WorkerPool | None = None,
) -> AsyncIterator[TestBed]:
    """Open the targets of a run.

    A target is `inprocess`, `http` (our server over the same engine) or the URL of a server.
    `inprocess` and `http` are opened once for each of the `admissions`.
    A server at a URL must have the `adapters`.
    `workers` are the generators of the URLs, instead of as many `processes` of this host.

    Raises:
        TargetError: A target is invalid.
        ConfigurationError: An admission policy is unknown.
    """
    for target in targets:
        if target not in (INPROCESS, HERE) and not re.match(r"https?://", target):
            raise TargetError(f"--target must be inprocess, http or an http:// or https:// URL, not {without_credentials(target)!r}")
    if INPROCESS in targets and (client.prompts != "ids" or client.endpoint or client.extra_body):
        raise TargetError("--chat, --tokenizer, --endpoint and --extra-body need targets over HTTP, so not inprocess")
    load_vocabulary(client.tokenizer)
    bench = TestBed([], model)
    async with AsyncExitStack() as stack:
        if {INPROCESS, HERE} & set(targets):
            own = LocalSystem(stack, bench, targets, model or BUNDLED, engine, engine_args, processes, client)
            await own.open(admissions, SLO(ttft=promise.ttft, tpot=promise.tpot))
        for url in targets:
            if url not in (INPROCESS, HERE):
                await _open_server(stack, bench, (url, model, adapters), vocabulary, workers or processes, client)
        names = [without_credentials(target) for target in targets]
        bench.systems.sort(key=lambda system: names.index(system.name.split()[0]))
        yield bench


async def _open_server(
    stack: AsyncExitStack,
    bench: TestBed,
    named: tuple[str, str | None, Sequence[str]],
    vocabulary: int,
    generators: WorkerPool | int,
    client: ClientOptions,
) -> None:
    url, model, adapters = named
    server, name = await find_model(parse_server(url, client), model, adapters)
    read = metrics_source(await stack.enter_async_context(open_session(server)), server.root / "metrics")
    if isinstance(generators, int):
        fleet = await stack.enter_async_context(open_fleet(server.url, name, generators, client))
    else:
        fleet = generators.fleet(server.url, name, client)
    bench.model = bench.model or name
    bench.systems.append(FleetSystem(without_credentials(url), fleet, middle(vocabulary), read))


@attrs.define
class LocalSystem:
    """Our targets of a test bed: one engine, and a manager over it for each admission policy."""

    stack: AsyncExitStack
    bench: TestBed
    targets: list[str]
    model: str
    engine: str
    engine_args: dict[str, Any]
    processes: int
    client: ClientOptions

    async def open(self, admissions: Sequence[str], slo: SLO) -> None:
        machine = self.bench.machine
        machine.watch_own_processes()
        self.bench.memory = Memory(device="", before=machine.vram() or machine.rss())
        print(f"starting {self.engine} with {self.model}", file=sys.stderr, flush=True)
        engine = create_engine(self.engine, self.model, self.engine_args)
        tasks = await self.stack.enter_async_context(anyio.create_task_group())
        await tasks.start(engine.run)
        self.stack.callback(tasks.cancel_scope.cancel)
        machine.watch_own_processes()
        # The sizes of an embedding may be thousands of numbers.
        self.bench.engine = attrs.asdict(engine.info, filter=lambda field, _: field.name != "dimensions")
        weights = self.model if ENGINES[self.engine].has_files else None
        describe_memory(self.bench.memory, machine, weights, self.bench.engine, self.engine_args)
        shared = SharedEngine(engine)
        for name in admissions:
            await self._open_rigs(shared, name, slo)

    async def _open_rigs(self, engine: SharedEngine, name: str, slo: SLO) -> None:
        info = engine.info
        setup = Setup(slo=slo, max_num_seqs=info.max_num_seqs, max_num_batched_tokens=info.max_num_batched_tokens)
        timelines = Timelines()
        # Observers are called for every token, so a manager gets no observer without need.
        observers = [timelines] if HERE in self.targets else []
        config = ManagerConfig(slo=slo, admission=AdmissionConfig(max_running=0))
        manager = EngineManager(engine, config, observers, admission=make(name, setup))
        await self.stack.enter_async_context(manager)
        read = manager_source(manager, self.bench.machine)
        label = "" if name == NO_ADMISSION else f" {name}"
        if INPROCESS in self.targets:
            self.bench.systems.append(InProcessSystem(manager, middle(info.vocab_size), read, INPROCESS + label))
        if HERE in self.targets:
            url = await self.stack.enter_async_context(serve_here(manager, self.model))
            fleet = await self.stack.enter_async_context(open_fleet(url, self.model, self.processes, self.client))
            self.bench.systems.append(FleetSystem(HERE + label, fleet, middle(info.vocab_size), read, timelines))


def describe_memory(memory: Memory, machine: Machine, model: str | None, engine: dict[str, Any], engine_args: dict[str, Any]) -> None:
    """Record what is measured once the engine is up, and what the model's files say."""
    memory.device = engine["device"]
    memory.loaded = machine.vram() or machine.rss()
    memory.max_model_len = engine["max_model_len"]
    shape = read_shape(Path(resolve(model)), engine_args.get("dtype")) if model else None
    if shape is not None:
        memory.weights = shape.weights
        memory.activations = shape.activations(engine["max_num_batched_tokens"] or 0, engine["max_num_seqs"])
        memory.kv_bytes_per_token = shape.kv_bytes_per_token
        memory.kv_budget = shape.kv_bytes_per_token * (engine["kv_cache_tokens"] or 0)


def middle(vocabulary: int) -> tuple[int, int]:
    """Return the middle of the vocabulary for prompts, which has no special tokens."""
    return vocabulary // 4, vocabulary // 4 * 3
