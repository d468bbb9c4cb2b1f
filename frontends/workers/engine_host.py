"""The supervisor's part of the engine: it runs the shared core, admits requests and gives workers places.

An engine that cannot be shared runs in each worker. Then the supervisor only admits requests.
"""

import asyncio
import pickle

import anyio
import anyio.abc
import attrs

from frontends.http.settings import HTTPServerSettings
from frontends.logs.operator_log import say
from frontends.program.progress import CHANGES
from frontends.workers.admission_server import AdmissionServer
from frontends.workers.engine_core import SharedCore
from frontends.workers.handle import WorkerHandle
from frontends.workers.messages import Abort, Died, Limits, Start, StepCount, Up
from frontends.workers.pool import SPARES, WorkerPool
from frontends.workers.state import SupervisorState
from frontends.workers.step_totals import StepAggregator
from llmserve import EngineDead, ManagerConfig, MetricsSnapshot, State
from llmserve.admission import AdmissionController, AdmissionStatistics, build_admission, wake
from llmserve.engines import create_engine
from llmserve.lifecycle.supervisor import Supervisor


class EngineHost:
    """The engine and the admission of all workers.

    Raises ConfigurationError.

    Args:
        settings: the settings of the server.
        config: the limits, as of a manager.
        pool: the workers.
        state: gets a failure when the engine will not be restarted.
    """

    def __init__(self, settings: HTTPServerSettings, config: ManagerConfig, pool: WorkerPool, state: SupervisorState) -> None:
        self._config = config
        self._pool = pool
        self._state = state
        self._clock = asyncio.get_running_loop().time
        self._admission: AdmissionController | None = None
        self._core: SharedCore | None = None
        self._supervisor: Supervisor | None = None
        self._orphans: list[str] = []
        self._up = False
        engine, args = settings.engine, settings.engine_args()
        self._steps = StepAggregator(one_engine=engine.spec.shares_core)
        if engine.spec.shares_core:
            self._core = SharedCore(
                engine.model,
                args,
                at_once=pool.count,
                in_all=pool.count + SPARES,
                open=self._open,
                joined=pool.all_up,
                steps=lambda: self._steps.made,
            )
            self._supervisor = Supervisor(
                self._core, config.restart, self._clock, busy=self._busy, up=self._engine_up, down=self._engine_down
            )
        else:
            info = create_engine(engine.kind, engine.model, args).info
            self._admit(info.max_num_seqs * pool.count, info.max_num_batched_tokens)

    @property
    def admission(self) -> AdmissionController:
        """The admission of all workers. The shared core must have been configured once."""
        assert self._admission is not None
        return self._admission

    @property
    def is_shared(self) -> bool:
        return self._core is not None

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Run the shared core and restart it. Without one, return.

        Raises EngineDead while the server does not serve. Later the state has the failure.
        """
        if self._supervisor is None:
            task_status.started()
            return
        try:
            await self._supervisor.run(task_status=task_status)
        except EngineDead:
            if not self._state.serving:
                raise

    def reconfigure(self, config: ManagerConfig) -> None:
        """Replace the limits while the engine runs. Raises ConfigurationError, and then changes nothing."""
        if self._admission is not None:
            wake(self._admission.adopt(self._build(config), self._clock()))
            self._pool.send_all(Limits(self._admission.policy.limit, self._admission.max_waiting))
        self._config = config
        if self._supervisor is not None:
            self._supervisor.config = config.restart

    def statistics(self) -> AdmissionStatistics | None:
        return None if self._admission is None else self._admission.statistics(self._clock())

    def with_restarts(self, metrics: MetricsSnapshot) -> MetricsSnapshot:
        """Return the workers' metrics with the restarts of the shared core."""
        if self._supervisor is None:
            return metrics
        return attrs.evolve(metrics, statistics=attrs.evolve(metrics.statistics, restarts=self._supervisor.restarts))

    # Workers

    def give_place(self, handle: WorkerHandle) -> None:
        """Give a worker a place at the engine, if it wants one and there is one."""
        life, core = (1, None) if self._core is None else (self._core.life, self._core.core)
        if handle.wants is None or handle.wants >= life or (core is None and self._core is not None):
            return
        handle.wants = None
        admission = self.admission
        handle.admission_server = handle.admission_server or AdmissionServer(admission, handle.channel.send, asyncio.get_running_loop())
        client = None if core is None else pickle.dumps(core.client(handle.index))
        handle.channel.send(Limits(admission.policy.limit, admission.max_waiting))
        handle.channel.send(Start(life, client, launched=life > 1))

    def joined(self, handle: WorkerHandle, message: Up) -> None:
        """Note that a worker takes requests, unless its engine has just died."""
        if self._core is not None and (message.life < self._core.life or self._core.core is None):
            return
        if not self._state.serving and not any(other.up for other in self._pool.handles):
            say(f"engine    {message.described}, {self._pool.count} workers")
        handle.up = handle.began = True
        self._abort([])
        self._state.notify()

    def record(self, handle: WorkerHandle, message: StepCount) -> None:
        """Record the engine's steps that a worker has seen."""
        self._steps.take(handle.index, message)
        now = self._clock()
        wake(self.admission.record(self._steps.together(now), now))

    def lost(self, handle: WorkerHandle, left: list[str]) -> None:
        """Forget a worker that has ended, and abort the requests that it has left in the engine."""
        self._steps.forget(handle.index)
        self._abort(left)

    def _abort(self, request_ids: list[str]) -> None:
        """Abort requests through any worker that is up.

        The core accepts an abort, by the engine's request ids, from any of its clients.
        """
        self._orphans += request_ids if self._core is not None else []
        able = next((handle for handle in self._pool.handles if handle.up), None)
        if able is not None and self._orphans:
            able.channel.send(Abort(self._orphans))
            self._orphans = []

    # The shared core

    def _admit(self, max_num_seqs: int, max_num_batched_tokens: int | None) -> None:
        self._batch = max_num_seqs, max_num_batched_tokens
        self._admission = self._build(self._config)

    def _build(self, config: ManagerConfig) -> AdmissionController:
        return build_admission(config.admission, config.slo, *self._batch)

    def _open(self) -> None:
        assert self._core is not None
        assert self._core.core is not None
        if self._admission is None:
            self._admit(*self._core.core.batch)
        for handle in self._pool.handles:
            self.give_place(handle)

    def _busy(self) -> int:
        statistics = self.statistics()
        return 0 if statistics is None else statistics.running

    def _engine_up(self) -> None:
        self._up = True
        wake(self.admission.resume(self._clock()))
        if self._state.serving:
            say(CHANGES[State.READY])

    def _engine_down(self, error: EngineDead, pause: float | None) -> None:
        """Handle the engine's death; `pause` is None if it will not be restarted.

        This may be called twice: for an engine that hung, or when its successor did not start
        either.
        """
        for handle in self._pool.handles:
            handle.up = False
        self._pool.send_all(Died(str(error), pause is None, error.stalled))
        self.admission.suspend(self._clock())
        self._orphans = []
        if pause is None:
            self._state.fail(str(error))
        elif self._up:
            say(CHANGES[State.RESTARTING])
        self._up = False
