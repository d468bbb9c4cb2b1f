"""One engine of the supervisor: its shared core, its restarts, and what it has told and left behind."""

import pickle
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs

from frontends.workers.engine_core import SharedCore
from frontends.workers.handle import WorkerHandle
from frontends.workers.messages import Abort, Start
from frontends.workers.pool import SPARES, WorkerPool
from frontends.workers.step_totals import StepAggregator
from llmserve import EngineDead, RestartConfig
from llmserve.engines.vllm.placement import Placement, place
from llmserve.engines.vllm.scheduling.step_limit import StepLimit
from llmserve.engines.vllm.shared_core import VLLMCore
from llmserve.lifecycle.supervisor import Supervisor


@attrs.define(eq=False)
class HostedEngine:
    """One engine.

    Attributes:
        number: its number, from 0.
        steps: combines what the workers report of its steps.
        core: its core; None where each worker has its own engine.
        supervisor: restarts the core.
        up: whether all workers take requests with it.
        has_failed: whether it will not be started again.
        step_limit: the maximum of tokens in a step of its core, which the supervisor's admission may set.
    """

    number: int
    steps: StepAggregator
    core: SharedCore | None = None
    supervisor: Supervisor | None = None
    up: bool = False
    has_failed: bool = False
    step_limit: StepLimit = attrs.field(factory=StepLimit)
    _orphans: list[str] = attrs.field(factory=list)

    @property
    def life(self) -> int:
        """The number of its start, from 1. An engine of the workers has a single life."""
        return 1 if self.core is None else self.core.life

    @property
    def has_places(self) -> bool:
        return self.core is None or self.core.core is not None

    def give_place(self, handle: WorkerHandle) -> None:
        """Give a worker a place, if it wants one and there is one."""
        known = handle.wants.get(self.number)
        if known is None or known >= self.life or not self.has_places:
            return
        del handle.wants[self.number]
        core = None if self.core is None else self.core.core
        client = None if core is None else pickle.dumps(core.client(handle.index))
        handle.channel.send(Start(self.number, self.life, client, launched=self.life > 1))

    def abort(self, request_ids: list[str], handles: list[WorkerHandle]) -> None:
        """Abort requests that a worker has left in the core, through any worker that is up.

        The core accepts an abort, by the engine's request ids, from any of its clients.
        """
        if self.core is None:
            return
        self._orphans += request_ids
        able = next((handle for handle in handles if self.number in handle.engines), None)
        if able is not None and self._orphans:
            able.channel.send(Abort(self.number, self._orphans))
            self._orphans = []

    def forget_orphans(self) -> None:
        """The core is gone, and all its requests with it."""
        self._orphans = []


def host_cores(
    model: str,
    args: Mapping[str, Any],
    pool: WorkerPool,
    restart: RestartConfig,
    clock: Callable[[], float],
    *,
    count: int,
    limits_steps: bool,
    open: Callable[[HostedEngine], None],  # noqa: A002 - as of `SharedCore`
    busy: Callable[[HostedEngine], int],
    up: Callable[[HostedEngine], None],
    down: Callable[[HostedEngine, EngineDead, float | None], None],
) -> list[HostedEngine]:
    """Return `count` engines whose cores the workers share. Raises ConfigurationError.

    `limits_steps` says that admission may limit the tokens in their steps.
    """

    def host(placement: Placement) -> HostedEngine:
        engine = HostedEngine(placement.number, StepAggregator(number=placement.number, one_engine=True))
        if limits_steps:
            engine.step_limit.allow(args)
        places = {"at_once": pool.count, "in_all": pool.count + SPARES}
        make = partial(VLLMCore, model, args, **places, placement=placement, step_limit=engine.step_limit)
        joined = partial(pool.all_up, placement.number)

        def died(error: EngineDead) -> None:
            assert engine.supervisor is not None
            down(engine, error, 0.0 if engine.supervisor.restarts_again else None)

        engine.core = SharedCore(make, open=partial(open, engine), joined=joined, steps=lambda: engine.steps.made, died=died)
        calls: dict[str, Any] = {"busy": partial(busy, engine), "up": partial(up, engine), "down": partial(down, engine)}
        engine.supervisor = Supervisor(engine.core, restart, clock, **calls)
        return engine

    return [host(placement) for placement in place(args, count)]
