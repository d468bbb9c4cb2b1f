"""EngineManager runs every request from its arrival to the release of its slot.

`EngineManager._stream()` shows that path from top to bottom. The module uses anyio, reaches the
engine only through its protocol, and knows no frontend.
"""

import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio
import anyio.abc
import attrs

from llmserve.admission import Admission, Policy, Refusal, check_policy
from llmserve.admission.retry_after import RETRY_AFTER
from llmserve.cancellation import CancellationToken
from llmserve.config import ManagerConfig, TenantTable
from llmserve.engine import Engine, EngineInfo, EnginePrompt, checked
from llmserve.errors import EngineDead, LLMServeError, Unavailable
from llmserve.generation import Generation
from llmserve.lifecycle.adapters import AdapterLoading
from llmserve.lifecycle.admission_driver import AdmissionDriver
from llmserve.lifecycle.engine_pool import EnginePool, PooledEngine
from llmserve.lifecycle.manager_loop import ManagerLoop
from llmserve.lifecycle.model_limits import check_images, check_model_limits, check_pooling, check_task
from llmserve.lifecycle.open_request import OpenRequest, arrival, note_outcome
from llmserve.lifecycle.open_requests import OpenRequests
from llmserve.lifecycle.recovery import Recovery
from llmserve.lifecycle.slo_check import check_slo
from llmserve.lifecycle.start_stop import Lifecycle
from llmserve.lifecycle.stream import TokenStream
from llmserve.lifecycle.tokenization import Tokenization
from llmserve.lifecycle.tokenizer_queue import TokenizerQueue, cache_salt
from llmserve.observability.metrics import MetricsRecorder, Observer
from llmserve.observability.snapshot import MetricsSnapshot
from llmserve.pooling.requests import PoolingRequest
from llmserve.request import GenerationRequest, Sampling
from llmserve.runtime.lifespan import first_of
from llmserve.state import ManagerStatistics, State, unavailable
from llmserve.tracing import Tracer

logger = logging.getLogger(__name__)


class EngineManager(Generation, Tokenization, AdapterLoading, Lifecycle):
    """Runs one or several engines and decides which requests they get.

        async with EngineManager.open("bundled") as manager:
            completion = await manager.generate("The capital of France is", max_tokens=16)

    Entering waits until all engines are up. Leaving drains the manager for at most
    `ManagerConfig.drain_timeout` seconds and then stops the engines. `start()` and `close()` do the
    same.

    Use a manager from any task of the event loop that started it. In another event loop its methods
    raise RuntimeError. Any thread may cancel a `CancellationToken`.

    Args:
        engine: An object that satisfies `llmserve.engine.Engine`, or a list of them that serve the
            same model. Each starts and restarts on its own.
        config: Limits and the SLO.
        observers: Objects that get every token and every end, besides the manager's own metrics.
        tracer: Gets every request and adds it to a trace.
        admission: A policy for this manager alone, such as FixedLimit(8), a policy's name, or an
            Admission. None selects the policy that the config names.
        clock: Returns monotonic seconds. None selects the event loop's clock.
    """

    def __init__(
        self,
        engine: Engine | Sequence[Engine],
        config: ManagerConfig | None = None,
        observers: Sequence[Observer] = (),
        *,
        tracer: Tracer | None = None,
        admission: Admission | Policy | str | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.engines = checked(engine)
        self.engine = self.engines[0]
        self.config = ManagerConfig.of(config)
        if isinstance(admission, str):
            named = attrs.evolve(self.config.admission, policy=check_policy(admission))
            self.config, admission = attrs.evolve(self.config, admission=named), None
        super().__init__(self.config.drain_timeout)
        self._loop = ManagerLoop(clock)
        self._admission = AdmissionDriver(admission, self.config, self.engines, lambda: self.info, self._loop)
        self._open_requests = OpenRequests(self.engines, self._admission, self._loop, self.config.cleanup_timeout, observers, tracer)
        self._tokenizing = TokenizerQueue(self.config.max_tokenizing)
        self._pool = EnginePool(
            self.engines,
            self.config.restart,
            self._loop.time,
            self._open_requests,
            up=self._engine_up,
            lost=self._engine_down,
            down=self._engine_down,
        )
        self._recovery = Recovery(self._pool, self._open_requests, self._loop, self._admission.move)
        self.recorder: MetricsRecorder | None = None

    @classmethod
    def open(
        cls,
        model: str = "bundled",
        *,
        engine: str = "vllm",
        engine_args: Mapping[str, Any] | None = None,
        engines: int = 1,
        config: ManagerConfig | None = None,
        observers: Sequence[Observer] = (),
        tracer: Tracer | None = None,
        admission: Admission | Policy | str | None = None,
    ) -> Self:
        """Make a manager for a model on the engine "vllm" or "simulated".

        Nothing is loaded before the manager is entered.

        Args:
            model: "bundled", a folder, or a name on the Hugging Face hub.
            engine: "vllm" or "simulated".
            engine_args: The engine's own arguments, by name.
            engines: Number of engines. They share the GPUs evenly.
            config: Limits and the SLO.
            observers: As in the constructor.
            tracer: As in the constructor.
            admission: As in the constructor.

        Raises:
            ConfigurationError: The engine or an engine argument is unknown, or the GPUs cannot hold
                as many engines; the message names it.
        """
        # Only this place of the core imports an engine, late, which keeps the import of llmserve
        # light.
        from llmserve.engines import create_engines

        return cls(create_engines(engine, model, engine_args or {}, engines), config, observers, tracer=tracer, admission=admission)

    def __repr__(self) -> str:
        return f"<EngineManager {self.state.value}, {len(self._open_requests)} open, {self._admission.admission!r}>"

    # One request

    @asynccontextmanager
    async def _stream(self, request: GenerationRequest, token: CancellationToken | None) -> AsyncIterator[TokenStream]:
        open_request = self._arrive(request, token)
        try:
            with self._open_requests.entering(open_request):
                ticket = self._admission.screen(open_request)
                prompt, sampling = await self._tokenize(open_request)
                await self._admission.admit(open_request, ticket, prompt, sampling, self._pool.wait)
                open_request.stream.reader = self.engines[open_request.engine].reader(request, prompt)
                open_request.timeline.submitted = self._loop.now()
                await self._recovery.submit(open_request, prompt, sampling)
            open_request.stream.raise_if_failed()
            yield open_request.stream
        except BaseException as error:
            note_outcome(open_request.timeline, error)
            raise
        finally:
            await self._open_requests.leave(open_request)

    def _arrive(self, request: GenerationRequest, token: CancellationToken | None) -> OpenRequest:
        timeline = arrival(request, self._loop.now(), lambda: self.info)
        try:
            self._refuse_unless_ready()
        except LLMServeError as error:
            if self.recorder is not None:
                self._open_requests.count_refused(request, timeline, error)
            raise
        seconds = min(bound for bound in (request.deadline, self.config.max_seconds, math.inf) if bound is not None)
        return self._open_requests.add(request, timeline, seconds, token, self._recovery.outcome_after_death)

    async def _tokenize(self, open_request: OpenRequest) -> tuple[EnginePrompt, Sampling]:
        request = open_request.request
        check_task(request, self.info)
        check_images(request, self.info)
        with self._tokenizing.place():
            prompt = await self._recovery.tokenize(open_request)
        salt = cache_salt(request.tenant) if self.config.isolate_tenants else None
        headers, adapter = open_request.span.headers, request.adapter
        if salt or headers or adapter:
            prompt = attrs.evolve(prompt, cache_salt=salt, trace_headers=headers, adapter=adapter)
        if isinstance(request, PoolingRequest):
            prompt, sampling = check_pooling(request, prompt, self.info), request.sampling
        else:
            sampling = check_model_limits(request, prompt, self.info, self.config.max_tokens)
        open_request.timeline.prompt_tokens = len(prompt.token_ids)
        open_request.timeline.tokenized = self._loop.now()
        return prompt, sampling

    @asynccontextmanager
    async def _tokenizer(self) -> AsyncIterator[Engine]:
        self._refuse_unless_ready()
        with self._tokenizing.place():
            yield (await self._pool.wait()).engine

    # The manager's lifecycle

    @asynccontextmanager
    async def _live(self) -> AsyncIterator[None]:
        end = State.STOPPED
        try:
            async with anyio.create_task_group() as tasks:
                self._loop.bind(tasks)
                self.recorder = MetricsRecorder(self.config.slo, self._loop.now(), self.config.max_seconds)
                self.recorder.named = frozenset(self.config.admission.table.named)
                self._open_requests.record(self.recorder)
                tasks.start_soon(self._open_requests.deadlines.run)
                try:
                    await self._pool.start(tasks)
                    self._admission.build(self.config)
                    self._pool.watch(tasks, self._admission.stepped)
                    if self.config.predicts and self._admission.policy is None:
                        await check_slo((await self._pool.wait()).engine, self.config.slo)
                    self.state = State.READY if self._pool.up else State.RESTARTING
                    yield
                finally:
                    with anyio.CancelScope(shield=True):
                        await self.drain(self._patience or 0.0)
                        self._end_requests()
                        await self.drain(self.config.cleanup_timeout)
                    tasks.cancel_scope.cancel()
        except Exception as error:
            if self._patience is None and self.state is not State.STARTING:
                end, self._recovery.failure = State.FAILED, first_of(error)
                logger.critical("the manager failed", exc_info=True)
            raise
        finally:
            self.state = end

    def _engine_up(self, member: PooledEngine) -> None:
        if self.state is State.RESTARTING:
            self.state = State.READY
        self._recovery.replay_all()
        self._admission.engine_up(member.number)

    def _engine_down(self, member: PooledEngine, error: EngineDead | None = None) -> None:
        if self._pool.failure is not None and self.state in (State.READY, State.RESTARTING, State.DRAINING):
            self.state = State.FAILED
        elif not self._pool.up and self.state is State.READY and (error or member.drains):
            self.state = State.RESTARTING
        if error is None:
            self._admission.engine_down(member.number)
        else:
            self._recovery.engine_down(member, error, self._unavailable)

    async def restart_engines(self) -> None:
        """Restart one engine after another; return when all are up again.

        Each first gets `ManagerConfig.drain_timeout` seconds to end its requests, while the others
        get the new ones. A single engine's requests are refused until it is up again.
        """
        self._require_home()
        await self._pool.restart(self.config.drain_timeout)

    async def drain(self, timeout: float | None = None) -> bool:
        """Accept no new requests and wait until the open ones end.

        Return True if all of them ended within `timeout` seconds; None sets no limit. Requests that
        remain keep running until the manager is left.
        """
        self._require_home()
        self._stop_taking()
        return await self._open_requests.drain(timeout)

    def cancel_all(self, reason: str) -> None:
        """End every open request now; each reader gets an `Unavailable` error with this reason."""
        self._require_home()
        for open_request in self._open_requests:
            open_request.stream.fail(Unavailable(reason, retry_after=RETRY_AFTER[Refusal.STOPPED], reason=Refusal.STOPPED))

    def set_tenants(self, table: TenantTable) -> None:
        """Replace the weights and limits of tenants. Usage that is already counted stays."""
        self.config = attrs.evolve(self.config, admission=attrs.evolve(self.config.admission, tenants=table))
        if self.recorder is not None:
            self.recorder.named = frozenset(table.named)
        self._admission.set_tenants(table)

    def reconfigure(self, config: ManagerConfig) -> None:
        """Replace the settings while requests run, which keep the limits that they were admitted under.

        The policy, `max_tokenizing` and `cleanup_timeout` stay. Raises ConfigurationError if the
        settings need another policy or do not fit it, and then changes nothing.
        """
        self._admission.reconfigure(config)
        self.config = attrs.evolve(config, max_tokenizing=self.config.max_tokenizing, cleanup_timeout=self.config.cleanup_timeout)
        self._pool.reconfigure(config.restart)
        self._allow_to_drain(config.drain_timeout)
        if self.recorder is not None:
            self.recorder.slo, self.recorder.named = config.slo, frozenset(config.admission.table.named)

    # State and figures

    @property
    def admission(self) -> Admission:
        """The admission in use. Raises RuntimeError before the engine is up."""
        return self._admission.built

    @property
    def info(self) -> EngineInfo:
        """The figures of one engine. Raises RuntimeError before one is up."""
        return self._pool.info

    @property
    def engine_is_up(self) -> bool:
        """Whether the engine works on requests, also while the manager drains."""
        return self._admission.admission is not None and self._pool.up and self.state is not State.STARTING

    def check_health(self) -> None:
        """Raise Unavailable if requests are refused, EngineDead if none can be answered."""
        if self.state is State.FAILED:
            raise EngineDead(str(self._recovery.failure or "the engine died"))
        if self.state is not State.READY:
            raise self._unavailable()
        self._pool.check_health()

    def statistics(self) -> ManagerStatistics:
        """Return a snapshot of the requests that run and wait."""
        return ManagerStatistics(
            state=self.state,
            restarts=sum(member.supervisor.restarts for member in self._pool.members),
            open=len(self._open_requests),
            tokenizing=self._tokenizing.length,
            admission=self._admission.statistics(),
            engine=self._pool.statistics(),
            engines=tuple(member.state() for member in self._pool.members),
        )

    def metrics(self) -> dict[str, Any]:
        """Return all measurements as one dictionary of plain values, in seconds and tokens."""
        return self.metrics_snapshot().snapshot(self._loop.now())

    def metrics_snapshot(self) -> MetricsSnapshot:
        """Return the data behind the metrics; it can be merged with that of other managers."""
        return MetricsSnapshot(self.statistics(), self.recorder)

    def _refuse_unless_ready(self) -> None:
        if self.state is State.FAILED:
            raise EngineDead(str(self._recovery.failure))
        if self.state is not State.READY:
            raise self._unavailable()
        self._require_home()

    def _unavailable(self) -> Unavailable:
        return unavailable(self.state, max(1.0, self._pool.back - self._loop.now()))
