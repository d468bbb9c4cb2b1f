"""The supervisor's part of the engines: it runs the shared cores, admits requests and gives workers places.

An engine that cannot be shared runs in each worker. Then the supervisor only admits requests.
"""

import asyncio
from collections.abc import Sequence

import anyio
import anyio.abc
import attrs

from frontends.http.settings import HTTPServerSettings
from frontends.logs.operator_log import say
from frontends.program.progress import engine_is_back, engine_is_gone, engine_leaves
from frontends.workers.admission_server import AdmissionServer
from frontends.workers.handle import WorkerHandle
from frontends.workers.hosted_engine import HostedEngine, host_cores
from frontends.workers.messages import Died, Limits, StepCount, Up
from frontends.workers.pool import WorkerPool
from frontends.workers.state import SupervisorState
from frontends.workers.step_totals import StepAggregator
from llmserve import EngineDead, ManagerConfig, MetricsSnapshot
from llmserve.admission import AdmissionController, AdmissionStatistics, build_admission, step_tokens, wake
from llmserve.engines import create_engine
from llmserve.lifecycle.rolling_restart import restart_in_turn


def next_home(homes: Sequence[int | None], workers: int, engines: int) -> int | None:
    """Return the engine that one more worker prefers, beside workers with these homes.

    None if there is one engine, or if each engine cannot be the home of equally many workers.
    """
    if engines == 1 or workers % engines:
        return None
    return min(range(engines), key=homes.count)


class EngineHost:
    """The engines and the admission of all workers.

    Raises ConfigurationError.

    Args:
        settings: the settings of the server.
        config: the limits, as of a manager.
        pool: the workers.
        state: gets a failure when no engine will be restarted.
    """

    def __init__(self, settings: HTTPServerSettings, config: ManagerConfig, pool: WorkerPool, state: SupervisorState) -> None:
        self._config = config
        self._pool = pool
        self._state = state
        self._clock = asyncio.get_running_loop().time
        self._admission: AdmissionController | None = None
        self._restarting = anyio.Lock()
        engine, args = settings.engine, settings.engine_args()
        count = engine.number(args)
        self.is_shared = engine.spec.shares_core
        if self.is_shared:
            self._engines = host_cores(
                engine.model,
                args,
                pool,
                config.restart,
                self._clock,
                count=count,
                limits_steps=config.limits_steps,
                open=self._open,
                busy=self._busy,
                up=self._engine_up,
                down=self._engine_down,
            )
        else:
            self._engines = [HostedEngine(number, StepAggregator(number=number, one_engine=False), up=True) for number in range(count)]
            info = create_engine(engine.kind, engine.model, args).info
            self._admit(info.max_num_seqs * pool.count, info.max_num_batched_tokens)

    @property
    def admission(self) -> AdmissionController:
        """The admission of all workers. A shared core must have been configured once."""
        assert self._admission is not None
        return self._admission

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Run the shared cores and restart them. Without one, return.

        Raises EngineDead while the server does not serve. Later the state has the failure.
        """
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as starting:
                for engine in self._engines:
                    if engine.supervisor is not None:
                        starting.start_soon(tasks.start, self._run, engine)
            task_status.started()

    async def _run(self, engine: HostedEngine, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        assert engine.supervisor is not None
        try:
            await engine.supervisor.run(task_status=task_status)
        except EngineDead:
            if not self._state.serving:
                raise

    async def restart(self) -> None:
        """Restart one engine after another; each first gets the drain timeout to end its requests."""
        async with self._restarting:
            await restart_in_turn(self._engines, self._drain, self._busy, self._config.drain_timeout)

    def _drain(self, engine: HostedEngine) -> None:
        say(engine_leaves(engine.number))
        self.admission.suspend(self._clock(), engine.number)

    def reconfigure(self, config: ManagerConfig) -> None:
        """Replace the limits while the engines run. Raises ConfigurationError, and then changes nothing."""
        if self._admission is not None:
            wake(self._admission.adopt(self._build(config), self._clock()))
            self._send_limits(self._pool.handles)
        self._config = config
        for engine in self._engines:
            if engine.supervisor is not None:
                engine.supervisor.config = config.restart

    @property
    def count(self) -> int:
        return len(self._engines)

    @property
    def slots(self) -> int:
        """The largest batch of an engine. A shared core must have been configured once."""
        return self._batch[0]

    def running(self) -> int:
        """Return the number of running requests."""
        return sum(map(self._busy, self._engines))

    def statistics(self) -> AdmissionStatistics | None:
        return None if self._admission is None else self._admission.statistics(self._clock())

    def with_restarts(self, metrics: MetricsSnapshot) -> MetricsSnapshot:
        """Return the workers' metrics with the restarts of the shared cores, and which of them are up."""
        if not self.is_shared:
            return metrics
        restarts = [engine.supervisor.restarts for engine in self._engines if engine.supervisor is not None]
        states = zip(metrics.statistics.engines, self._engines, restarts, strict=False)
        engines = tuple(attrs.evolve(state, up=engine.up, restarts=count) for state, engine, count in states)
        return attrs.evolve(metrics, statistics=attrs.evolve(metrics.statistics, restarts=sum(restarts), engines=engines))

    # Workers

    def want(self, handle: WorkerHandle, engine: int, life: int) -> None:
        """Note that a worker wants a place at an engine's life after `life`, and give it one."""
        handle.wants[engine] = life
        self._give_place(self._engines[engine], handle)

    def _give_place(self, engine: HostedEngine, handle: WorkerHandle) -> None:
        if engine.has_places and handle.admission_server is None:
            loop = asyncio.get_running_loop()
            handle.admission_server = AdmissionServer(self.admission, handle.channel.send, loop, self._next_home())
            self._send_limits([handle])
        engine.give_place(handle)

    def _next_home(self) -> int | None:
        servers = (handle.admission_server for handle in self._pool.handles)
        return next_home([server.home for server in servers if server is not None], self._pool.count, len(self._engines))

    def _send_limits(self, handles: list[WorkerHandle]) -> None:
        for handle in handles:
            handle.channel.send(Limits(self.admission.policy.limit, self.admission.max_waiting))

    def joined(self, handle: WorkerHandle, message: Up) -> None:
        """Note that a worker takes requests with an engine, unless that has just died."""
        engine = self._engines[message.engine]
        if message.life < engine.life or not engine.has_places:
            return
        if not self._state.serving and not any(engine.number in other.engines for other in self._pool.handles):
            which = f" {engine.number}" if len(self._engines) > 1 else ""
            say(f"engine{which:<4}{message.described}, {self._pool.count} workers")
        handle.engines.add(engine.number)
        handle.began = True
        engine.abort([], self._pool.handles)
        self._state.notify()

    def record(self, handle: WorkerHandle, message: StepCount) -> None:
        """Record an engine's steps that a worker has seen."""
        engine, now = self._engines[message.engine], self._clock()
        engine.steps.take(handle.index, message)
        wake(self.admission.record(engine.steps.together(now), now))
        tokens = step_tokens(self.admission.policy, engine.number)
        if tokens is not None:
            engine.step_limit.set(tokens)

    def lost(self, handle: WorkerHandle, left: list[tuple[int, str]]) -> None:
        """Forget a worker that has ended, and abort the requests that it has left in the engines."""
        for engine in self._engines:
            engine.steps.forget(handle.index)
            engine.abort([request_id for number, request_id in left if number == engine.number], self._pool.handles)

    # The shared cores

    def _admit(self, max_num_seqs: int, max_num_batched_tokens: int | None, min_step_tokens: int | None = None) -> None:
        self._batch = max_num_seqs, max_num_batched_tokens
        self._min_step_tokens = min_step_tokens
        self._admission = self._build(self._config)
        for engine in self._engines:
            if not engine.up:
                self._admission.suspend(self._clock(), engine.number)

    def _build(self, config: ManagerConfig) -> AdmissionController:
        count, least = len(self._engines), self._min_step_tokens
        return build_admission(config.admission, config.slo, *self._batch, engines=count, min_step_tokens=least)

    def _open(self, engine: HostedEngine) -> None:
        assert engine.core is not None
        assert engine.core.core is not None
        if self._admission is None:
            self._admit(*engine.core.core.batch, engine.core.core.min_step_tokens)
        for handle in self._pool.handles:
            self._give_place(engine, handle)

    def _busy(self, engine: HostedEngine) -> int:
        return 0 if self._admission is None else self._admission.running_on(engine.number)

    def _engine_up(self, engine: HostedEngine) -> None:
        engine.up = True
        wake(self.admission.resume(self._clock(), engine.number))
        self._send_limits(self._pool.handles)
        if self._state.serving:
            say(engine_is_back(engine.number, self._count_up(), len(self._engines)))

    def _engine_down(self, engine: HostedEngine, error: EngineDead, pause: float | None) -> None:
        """Handle an engine's death; `pause` is None if it will not be restarted.

        This may be called twice: before and after the remains of the engine are removed, or when
        its successor did not start either.
        """
        for handle in self._pool.handles:
            handle.engines.discard(engine.number)
        was_up, engine.up = engine.up, False
        had_failed, engine.has_failed = engine.has_failed, pause is None
        over = all(other.has_failed for other in self._engines)
        self._pool.send_all(Died(engine.number, str(error), over, error.stalled, error.requested))
        self.admission.suspend(self._clock(), engine.number)
        self._send_limits(self._pool.handles)
        engine.forget_orphans()
        if over:
            self._state.fail(str(error))
        elif (was_up or engine.has_failed) and not (had_failed or error.requested):
            say(engine_is_gone(engine.number, self._count_up(), len(self._engines), for_good=engine.has_failed))

    def _count_up(self) -> int:
        return sum(engine.up for engine in self._engines)
