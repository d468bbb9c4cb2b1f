"""EngineManager runs every request from its arrival to the release of its slot.

`EngineManager._stream()` shows that path from top to bottom. The module uses anyio, reaches the
engine only through its protocol, and knows no frontend.
"""

import contextvars
import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio
import anyio.abc
import anyio.lowlevel
import attrs
import sniffio

from llmserve.admission import Admission, Policy, Refusal, Ticket, TicketState, build_admission, check_policy, separate, wake
from llmserve.admission.retry_after import RETRY_AFTER
from llmserve.cancellation import CancellationToken
from llmserve.config import ManagerConfig, TenantTable
from llmserve.engine import Engine, EngineInfo, EnginePrompt, checked
from llmserve.errors import DeadlineExceeded, EngineDead, InvalidRequest, LLMServeError, RequestCancelled, Unavailable
from llmserve.generation import Generation
from llmserve.lifecycle.deadlines import Deadlines
from llmserve.lifecycle.model_limits import check_model_limits
from llmserve.lifecycle.open_request import OpenRequest, arrival, check_type, interrupter, note_outcome
from llmserve.lifecycle.recovery import Recovery
from llmserve.lifecycle.slo_check import check_slo, engine_facts
from llmserve.lifecycle.start_stop import Lifecycle
from llmserve.lifecycle.stream import TokenStream
from llmserve.lifecycle.supervisor import Supervisor
from llmserve.lifecycle.tokenizer_queue import TokenizerQueue, cache_salt
from llmserve.lifecycle.watchdog import Watchdog
from llmserve.observability.metrics import MetricsRecorder, Observer, Observers
from llmserve.observability.snapshot import MetricsSnapshot
from llmserve.request import GenerationRequest, Outcome, Sampling, Timeline
from llmserve.runtime.lifespan import first_of
from llmserve.state import ManagerStatistics, State, unavailable
from llmserve.tracing import CarefulTracer, NoTracer, Tracer

logger = logging.getLogger(__name__)


class EngineManager(Generation, Lifecycle):
    """Runs one engine and decides which requests it gets.

        async with EngineManager.open("bundled") as manager:
            completion = await manager.generate("The capital of France is", max_tokens=16)

    Entering waits until the engine is up. Leaving drains the manager for at most
    `ManagerConfig.drain_timeout` seconds and then stops the engine. `start()` and `close()` do the
    same.

    Use a manager from any task of the event loop that started it. In another event loop its methods
    raise RuntimeError. Any thread may cancel a `CancellationToken`.

    Args:
        engine: An object that satisfies `llmserve.engine.Engine`.
        config: Limits and the SLO.
        observers: Objects that get every token and every end, besides the manager's own metrics.
        tracer: Gets every request and adds it to a trace.
        admission: A policy for this manager alone, such as FixedLimit(8), a policy's name, or an
            Admission. None selects the policy that the config names.
        clock: Returns monotonic seconds. None selects the event loop's clock.
    """

    def __init__(
        self,
        engine: Engine,
        config: ManagerConfig | None = None,
        observers: Sequence[Observer] = (),
        *,
        tracer: Tracer | None = None,
        admission: Admission | Policy | str | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.engine = checked(engine)
        self.config = ManagerConfig.of(config)
        if isinstance(admission, str):
            named = attrs.evolve(self.config.admission, policy=check_policy(admission))
            self.config, admission = attrs.evolve(self.config, admission=named), None
        super().__init__(self.config.drain_timeout)
        self._clock = clock or anyio.current_time
        self._extra_observers = tuple(observers)
        self._tracer: Tracer = NoTracer() if tracer is None else CarefulTracer(tracer)
        self._open_requests: dict[str, OpenRequest] = {}
        self._tokenizing = TokenizerQueue(self.config.max_tokenizing)
        self._idle: anyio.Event | None = None
        self._supervisor: Supervisor | None = None
        self._recovery = Recovery(engine, lambda: self._supervisor is not None and self._supervisor.restarts_again)
        self._failure: BaseException | None = None
        # The time at which the engine should be up again.
        self._back = 0.0
        # Both are made on entering: they need the event loop, or the engine's own figures.
        self._admission, self._policy = separate(admission, self.config.admission)
        self.recorder: MetricsRecorder | None = None

    @classmethod
    def open(
        cls,
        model: str = "bundled",
        *,
        engine: str = "vllm",
        engine_args: Mapping[str, Any] | None = None,
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
            config: Limits and the SLO.
            observers: As in the constructor.
            tracer: As in the constructor.
            admission: As in the constructor.

        Raises:
            ConfigurationError: The engine or an engine argument is unknown; the message names it.
        """
        # Only this place of the core imports an engine, late, which keeps the import of llmserve
        # light.
        from llmserve.engines import create_engine

        return cls(create_engine(engine, model, engine_args or {}), config, observers, tracer=tracer, admission=admission)

    def __repr__(self) -> str:
        return f"<EngineManager {self.state.value}, {len(self._open_requests)} open, {self._admission!r}>"

    # One request

    @asynccontextmanager
    async def _stream(self, request: GenerationRequest, token: CancellationToken | None) -> AsyncIterator[TokenStream]:
        open_request = self._arrive(request, token)
        try:
            with open_request.entry:
                ticket = self._screen(open_request)
                prompt, sampling = await self._tokenize(open_request)
                await self._admit(open_request, ticket, sampling)
                open_request.stream.reader = self.engine.reader(request, prompt)
                open_request.timeline.submitted = self._clock()
                await self._recovery.submit(open_request, prompt, sampling)
            open_request.entered = True
            open_request.stream.raise_if_failed()
            yield open_request.stream
        except BaseException as error:
            note_outcome(open_request.timeline, error)
            raise
        finally:
            # The manager's own task does the cleanup that must be awaited. An await here could be
            # cancelled: anyio cancels by level, and aiohttp's native cancel passes through any
            # shield.
            open_request.entered = True
            self._settle(open_request)
            if not open_request.released.is_set():
                await open_request.released.wait()

    def _arrive(self, request: GenerationRequest, token: CancellationToken | None) -> OpenRequest:
        now = self._clock()
        timeline = arrival(request, now, lambda: self.engine.info)
        try:
            self._refuse_unless_ready()
        except LLMServeError as error:
            self._count_refused(request, timeline, error)
            raise
        if request.request_id in self._open_requests:
            raise InvalidRequest(f"a request with the id {request.request_id[:64]!r} is already open", "request_id")
        open_request = OpenRequest(request=request, timeline=timeline, span=self._tracer.begin(request, timeline))
        open_request.stream = TokenStream(
            timeline,
            self._clock,
            self._observer,
            on_end=lambda: self._ended(open_request),
            on_first=lambda: self._begun(open_request),
            on_death=lambda error: self._recovery.outcome_after_death(open_request, error),
            interval=request.sampling.stream_interval,
        )
        deadline = now + self._longest(request)
        if token is not None:
            deadline = min(deadline, token.deadline)
            open_request.unlink = token.add_callback(interrupter(open_request.stream))
        # This comes after everything that can raise. Otherwise a failed arrival would stay
        # registered, and leaving the manager would wait for it.
        self._open_requests[request.request_id] = open_request
        if deadline < math.inf:
            open_request.watch = self._deadlines.add(deadline, lambda: open_request.stream.fail(DeadlineExceeded(deadline - now)))
        return open_request

    def _longest(self, request: GenerationRequest) -> float:
        """Return the longest time in seconds that the request may take."""
        return min(bound for bound in (request.deadline, self.config.max_seconds, math.inf) if bound is not None)

    def _count_refused(self, request: GenerationRequest, timeline: Timeline, error: LLMServeError) -> None:
        """Count a request that was refused on arrival; it holds nothing that must be released."""
        if self.recorder is None:
            return
        note_outcome(timeline, error)
        timeline.finished = timeline.arrived
        self._observer.finished(timeline)
        self._tracer.begin(request, timeline).end(timeline)

    async def _tokenize(self, open_request: OpenRequest) -> tuple[EnginePrompt, Sampling]:
        with self._tokenizing.place():
            prompt = await self._recovery.tokenize(open_request)
        salt = cache_salt(open_request.request.tenant) if self.config.isolate_tenants else None
        headers, adapter = open_request.span.headers, open_request.request.adapter
        if salt or headers or adapter:
            prompt = attrs.evolve(prompt, cache_salt=salt, trace_headers=headers, adapter=adapter)
        sampling = check_model_limits(open_request.request, prompt, self.engine.info, self.config.max_tokens)
        open_request.timeline.prompt_tokens = len(prompt.token_ids)
        open_request.timeline.tokenized = self._clock()
        return prompt, sampling

    def _screen(self, open_request: OpenRequest) -> Ticket:
        """Refuse what admission refuses at any prompt length, before tokenising the prompt."""
        request = open_request.request
        ticket = open_request.ticket = Ticket(
            request_id=request.request_id,
            tenant=request.tenant,
            priority=request.priority,
            arrived=open_request.timeline.arrived,
            deadline=open_request.timeline.arrived + self._longest(request),
            best_effort=request.best_effort,
        )
        refused = self.admission.screen(ticket, self._clock())
        if refused is not None:
            raise refused.error(open_request.request.tenant)
        return ticket

    async def _admit(self, open_request: OpenRequest, ticket: Ticket, sampling: Sampling) -> None:
        ticket.prompt_tokens, ticket.max_tokens = open_request.timeline.prompt_tokens, sampling.max_tokens
        refused = self.admission.offer(ticket, self._clock())
        if ticket.state is TicketState.WAITING:
            granted = anyio.Event()
            ticket.wake = granted.set
        # The loop repeats only for a best-effort request: it first gives up its position among the
        # requests with an SLO.
        while ticket.state is TicketState.WAITING:
            with anyio.move_on_after(max(0.0, ticket.expires - self._clock())):
                await granted.wait()
            # Patience does not run out while there is no engine.
            await self._recovery.wait()
            # The ticket decides, not the scope: the slot may arrive at the very moment at which
            # patience runs out.
            refused = ticket.refused
            if ticket.state is TicketState.WAITING:
                refused, woken = self.admission.give_up(ticket, self._clock())
                wake(woken)
        if refused is not None:
            raise refused.error(open_request.request.tenant)
        open_request.timeline.admitted = ticket.granted

    # Around requests

    async def tokenize(self, request: GenerationRequest) -> EnginePrompt:
        """Return the prompt as the engine would get it. Raises InvalidRequest or Overloaded."""
        check_type(request)
        self._refuse_unless_ready()
        with self._tokenizing.place():
            return await self.engine.tokenize(request)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of the tokens. Raises InvalidRequest or Overloaded."""
        self._refuse_unless_ready()
        with self._tokenizing.place():
            return await self.engine.detokenize(tuple(token_ids))

    # Inputs of admission

    def _begun(self, open_request: OpenRequest) -> None:
        if open_request.ticket is not None:
            wake(self.admission.first_token(open_request.ticket, self._clock()))

    def _stepped(self) -> None:
        if self._admission is None:
            return
        try:
            wake(self._admission.record(engine_facts(self.engine.statistics(), self.engine.info), self._clock()))
        except Exception:
            # This runs in the engine's own loop, and vLLM's loop would not survive an exception.
            logger.exception("admission failed to process the engine's statistics")

    # The end of a request

    def _ended(self, open_request: OpenRequest) -> None:
        """Handle the end of a stream: it has its last delta, or its error."""
        error = open_request.stream.error
        note_outcome(open_request.timeline, error)
        if error is None:
            open_request.in_engine = False
        if open_request.entered:
            self._settle(open_request)
        else:
            # Entering unwinds first: an abort that reaches the engine before the submit would find
            # nothing.
            open_request.entry.cancel()

    def _spawn(self, work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run a coroutine in a task of the manager."""
        self._context.run(self._tasks.start_soon, work, *args)

    def _settle(self, open_request: OpenRequest) -> None:
        """Release everything once: now if the engine is done with it, otherwise after an abort."""
        if open_request.settled:
            return
        open_request.settled = True
        open_request.unlink()
        if open_request.watch is not None:
            open_request.watch.release()
        open_request.timeline.finished = self._clock()
        # This changes a stream only if the caller left it with `break` or `return` before its
        # end.
        open_request.stream.fail(RequestCancelled("the caller left the stream"))
        if open_request.replaying is not None:
            open_request.replaying.cancel()
        elif open_request.in_engine:
            self._spawn(self._abort, open_request)
        else:
            self._release(open_request)

    async def _abort(self, open_request: OpenRequest) -> None:
        with anyio.move_on_after(self.config.cleanup_timeout, shield=True) as scope:
            try:
                await self.engine.abort(open_request.request.request_id)
            except Exception:
                logger.exception("aborting request %s failed", open_request.request.request_id)
        if scope.cancelled_caught:
            logger.warning("the engine did not confirm the abort of request %s", open_request.request.request_id)
        self._release(open_request)

    def _release(self, open_request: OpenRequest) -> None:
        if open_request.ticket is not None:
            open_request.ticket.generated, open_request.ticket.complete = (
                open_request.timeline.completion_tokens,
                open_request.timeline.outcome is Outcome.COMPLETED,
            )
            wake(self.admission.leave(open_request.ticket, self._clock()))
        del self._open_requests[open_request.request.request_id]
        self._observer.finished(open_request.timeline)
        open_request.span.end(open_request.timeline)
        open_request.released.set()
        if self._idle is not None and not self._open_requests:
            self._idle.set()

    # The manager's lifecycle

    @asynccontextmanager
    async def _live(self) -> AsyncIterator[None]:
        end = State.STOPPED
        try:
            async with anyio.create_task_group() as self._tasks:
                self._prepare()
                self._tasks.start_soon(self._deadlines.run)
                try:
                    await self._tasks.start(self._run_engine)
                    self._admission = self._admission or self._build_admission()
                    self.engine.watch(self._stepped)
                    self._tasks.start_soon(self._watchdog.run)
                    if self.config.predicts and self._policy is None:
                        await check_slo(self.engine, self.config.slo)
                    self.state = State.READY if self._recovery.up else State.RESTARTING
                    yield
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._wind_up(self._patience or 0.0)
                    self._tasks.cancel_scope.cancel()
        except Exception as error:
            if self._patience is None and self.state is not State.STARTING:
                end, self._failure = State.FAILED, first_of(error)
                logger.critical("the manager failed", exc_info=True)
            raise
        finally:
            self.state = end

    def _prepare(self) -> None:
        """Create what needs the event loop."""
        # Callbacks of the event loop may cancel a token, and there only this context shows anyio
        # its backend.
        self._context = contextvars.copy_context()
        self._context.run(sniffio.current_async_library_cvar.set, sniffio.current_async_library())
        if self._clock is anyio.current_time:
            # The loop's own method, where it has one (asyncio does): a call through anyio costs a
            # microsecond for every token.
            self._clock = getattr(anyio.lowlevel.current_token().native_token, "time", anyio.current_time)
        self.recorder = MetricsRecorder(self.config.slo, self._clock(), self.config.max_seconds)
        self.recorder.named = frozenset(self.config.admission.table.named)
        self._observer = Observers((self.recorder, *self._extra_observers)) if self._extra_observers else self.recorder
        self._deadlines = Deadlines(self._clock)

    def _build_admission(self) -> Admission:
        info, config = self.engine.info, self.config
        return build_admission(config.admission, config.slo, info.max_num_seqs, info.max_num_batched_tokens, self._policy)

    async def _run_engine(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        self._supervisor = Supervisor(
            self.engine,
            self.config.restart,
            self._clock,
            # An engine that reports its death but goes on would leave all requests waiting, so they
            # count as busy.
            busy=lambda: sum(open_request.in_engine or not self._recovery.up for open_request in self._open_requests.values()),
            up=self._engine_up,
            down=self._engine_down,
        )
        self._watchdog = Watchdog(self.engine, self._clock, self._open_requests.values, self._supervisor.hurry)
        try:
            await self._supervisor.run(task_status=task_status)
        except EngineDead:
            if self.state is State.STARTING:
                raise

    def _engine_up(self) -> None:
        if self.state is State.RESTARTING:
            self.state = State.READY
        for open_request in self._recovery.engine_up(self._open_requests.values()):
            self._spawn(self._replay, open_request)
        if self._admission is not None:
            wake(self._admission.resume(self._clock()))

    def _engine_down(self, error: EngineDead, pause: float | None) -> None:
        now = self._clock()
        if pause is None:
            self._failure = error
            if self.state in (State.READY, State.RESTARTING, State.DRAINING):
                self.state = State.FAILED
        elif self._supervisor is not None:
            self._back = now + pause + self._supervisor.start_seconds
            if self.state is State.READY:
                self.state = State.RESTARTING
            for open_request in list(self._open_requests.values()):
                if open_request.gives_up_before(self._back):
                    # A request that arrives now is refused too: both would wait longer than they
                    # may.
                    open_request.stream.fail(self._unavailable())
        if self._admission is not None:
            self._admission.suspend(now)
        self._recovery.engine_down(error, list(self._open_requests.values()), for_good=pause is None)

    async def _replay(self, open_request: OpenRequest) -> None:
        if not open_request.settled:
            await self._recovery.replay(open_request)
            if open_request.settled:
                # The caller left the stream during the replay, or the replay failed.
                await self._abort(open_request)

    async def drain(self, timeout: float | None = None) -> bool:
        """Accept no new requests and wait until the open ones end.

        Return True if all of them ended within `timeout` seconds; None sets no limit. Requests that
        remain keep running until the manager is left.
        """
        self._require_home()
        self._stop_taking()
        if not self._open_requests:
            return True
        self._idle = self._idle or anyio.Event()
        with anyio.move_on_after(timeout):
            await self._idle.wait()
        return not self._open_requests

    def cancel_all(self, reason: str) -> None:
        """End every open request now; each reader gets an `Unavailable` error with this reason."""
        self._require_home()
        for open_request in list(self._open_requests.values()):
            open_request.stream.fail(Unavailable(reason, retry_after=RETRY_AFTER[Refusal.STOPPED], reason=Refusal.STOPPED))

    def set_tenants(self, table: TenantTable) -> None:
        """Replace the weights and limits of tenants. Usage that is already counted stays."""
        self.config = attrs.evolve(self.config, admission=attrs.evolve(self.config.admission, tenants=table))
        if self.recorder is not None:
            self.recorder.named = frozenset(table.named)
        if self._admission is not None:
            self._admission.set_tenants(table)

    def _end_requests(self) -> None:
        self.cancel_all("the server is stopping")

    async def _wind_up(self, timeout: float) -> None:
        await self.drain(timeout)
        self._end_requests()
        await self.drain(self.config.cleanup_timeout)

    # State and figures

    @property
    def admission(self) -> Admission:
        """The admission in use. Raises RuntimeError before the engine is up."""
        if self._admission is None:
            raise RuntimeError("the manager has not been started")
        return self._admission

    @property
    def info(self) -> EngineInfo:
        """The engine's figures. Raises RuntimeError before the engine is up."""
        return self.engine.info

    @property
    def engine_is_up(self) -> bool:
        """Whether the engine works on requests, also while the manager drains."""
        return self._admission is not None and self._recovery.up and self.state is not State.STARTING

    def check_health(self) -> None:
        """Raise Unavailable if requests are refused, EngineDead if none can be answered."""
        if self.state is State.FAILED:
            raise EngineDead(str(self._failure or "the engine died"))
        if self.state is not State.READY:
            raise self._unavailable()
        self.engine.check_health()
        self._watchdog.check()

    def statistics(self) -> ManagerStatistics:
        """Return a snapshot of the requests that run and wait."""
        return ManagerStatistics(
            state=self.state,
            restarts=self._supervisor.restarts if self._supervisor else 0,
            open=len(self._open_requests),
            tokenizing=self._tokenizing.length,
            admission=self._admission.statistics(self._clock()) if self._admission else None,
            engine=self.engine.statistics(),
        )

    def metrics(self) -> dict[str, Any]:
        """Return all measurements as one dictionary of plain values, in seconds and tokens."""
        return self.metrics_snapshot().snapshot(self._clock())

    def metrics_snapshot(self) -> MetricsSnapshot:
        """Return the data behind the metrics; it can be merged with that of other managers."""
        return MetricsSnapshot(self.statistics(), self.recorder)

    def _refuse_unless_ready(self) -> None:
        if self.state is State.FAILED:
            raise EngineDead(str(self._failure))
        if self.state is not State.READY:
            raise self._unavailable()
        self._require_home()

    def _unavailable(self) -> Unavailable:
        return unavailable(self.state, max(1.0, self._back - self._clock()))
