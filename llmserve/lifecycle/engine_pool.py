"""The engines of a manager: each runs, hangs, dies and restarts on its own."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import anyio
import anyio.abc
import attrs

from llmserve.config import RestartConfig
from llmserve.engine import Engine, EngineInfo, EngineStatistics, combined
from llmserve.errors import EngineDead
from llmserve.lifecycle.open_request import OpenRequest
from llmserve.lifecycle.rolling_restart import restart_in_turn
from llmserve.lifecycle.supervisor import Supervisor
from llmserve.lifecycle.watchdog import Watchdog
from llmserve.state import EngineState

logger = logging.getLogger(__name__)


@attrs.define(eq=False)
class PooledEngine:
    """One engine of a pool.

    Attributes:
        number: Its number, from 0; tickets are granted to it.
        up: Whether it accepts requests.
        hope: Whether it was going to be restarted when it was lost.
        drains: Whether it ends its requests, and is then restarted on request.
        back: When it should be up again, on the manager's clock.
        failure: Why it will not be started again; None while it runs or will be.
    """

    number: int
    engine: Engine
    supervisor: Supervisor = attrs.field(init=False)
    watchdog: Watchdog = attrs.field(init=False)
    up: bool = False
    hope: bool = False
    drains: bool = False
    back: float = 0.0
    failure: EngineDead | None = None

    def state(self) -> EngineState:
        failed, restarts = self.failure is not None, self.supervisor.restarts
        return EngineState(up=self.up, drains=self.drains, failed=failed, restarts=restarts, engine=self.engine.statistics())


@attrs.frozen
class _RequestsOf:
    """The open requests that were granted to one engine."""

    open_requests: Iterable[OpenRequest]
    number: int

    def __iter__(self) -> Iterator[OpenRequest]:
        return (open_request for open_request in self.open_requests if open_request.engine == self.number)


class EnginePool:
    """One or several engines.

    Args:
        config: When an engine counts as hung, and how often it is restarted.
        up: Called whenever an engine accepts requests.
        lost: Called as soon as it is known that an engine no longer does.
        down: Called with the reason after that. Called again once the time of the next start is
            certain.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        config: RestartConfig,
        clock: Callable[[], float],
        open_requests: Iterable[OpenRequest],
        *,
        up: Callable[[PooledEngine], None],
        lost: Callable[[PooledEngine], None],
        down: Callable[[PooledEngine, EngineDead], None],
    ) -> None:
        self._clock = clock
        self._config = config
        self._open_requests = open_requests
        self._on_up, self._on_lost, self._on_down = up, lost, down
        self._up = anyio.Event()
        self._restarting = anyio.Lock()
        # Held while adapters are loaded or unloaded.
        self.changing_adapters = anyio.Lock()
        self.members = tuple(PooledEngine(number, engine) for number, engine in enumerate(engines))
        for member in self.members:
            member.supervisor = Supervisor(
                member.engine,
                config,
                clock,
                busy=partial(self._busy, member),
                up=partial(self._engine_up, member),
                down=partial(self._engine_down, member),
            )
            mine = _RequestsOf(open_requests, member.number)
            member.watchdog = Watchdog(member.engine, clock, mine, member.supervisor.hurry)

    # All engines

    @property
    def up(self) -> bool:
        """Whether any engine accepts requests."""
        return self._up.is_set()

    @property
    def failure(self) -> EngineDead | None:
        """Why no engine will be started again; None if one runs or will."""
        failures = [member.failure for member in self.members]
        return None if None in failures else failures[-1]

    @property
    def info(self) -> EngineInfo:
        """The figures of an engine that is or was up. Raises RuntimeError if none was."""
        for member in self.members[:-1]:
            with suppress(RuntimeError):
                return member.engine.info
        return self.members[-1].engine.info

    @property
    def back(self) -> float:
        """When the next engine should be up, on the manager's clock."""
        return min((member.back for member in self.members if member.failure is None), default=math.inf)

    async def wait(self) -> PooledEngine:
        """Return an engine that accepts requests, when there is one."""
        while not self._up.is_set():
            await self._up.wait()
        return next(member for member in self.members if member.up)

    def may_replay(self, lost: PooledEngine) -> bool:
        """Whether a request of a lost engine can go to another engine, or to the next one."""
        return lost.hope or any(other.up or (other.failure is None and other.hope) for other in self.members if other is not lost)

    async def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Run all engines in tasks of the group; return when they are up for the first time.

        `RestartConfig.start_all` says whether one of them is enough. Raises what the start of one
        engine raises.
        """
        if not self._config.start_all:
            for member in self.members:
                tasks.start_soon(self._run, member)
            await self.wait()
            return
        try:
            async with anyio.create_task_group() as starting:
                for member in self.members:
                    starting.start_soon(tasks.start, partial(self._run, member))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _run(self, member: PooledEngine, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        while member.failure is None:
            try:
                await member.supervisor.run(task_status=task_status)
            except EngineDead as error:
                # The other engines go on. An engine that was never up ends the start, unless
                # another process starts it again.
                if member.failure is None and (self._config.start_all or error.for_good):
                    raise
                logger.warning("engine %d is not up: %s", member.number, error)

    def watch(self, tasks: anyio.abc.TaskGroup, stepped: Callable[[int], None]) -> None:
        """Look for requests that make the engines' steps slow, in tasks of the group.

        `stepped` is called with an engine's number after each of its steps.
        """
        for member in self.members:
            member.engine.watch(partial(stepped, member.number))
            tasks.start_soon(member.watchdog.run)

    async def restart(self, patience: float) -> None:
        """Restart one engine after another; each first gets `patience` seconds to end its requests."""
        async with self._restarting:
            await restart_in_turn(self.members, self._drain, self._busy, patience)

    def _drain(self, member: PooledEngine) -> None:
        member.drains = True
        self.lose(member)

    def reconfigure(self, config: RestartConfig) -> None:
        for member in self.members:
            member.supervisor.config = config

    def check_health(self) -> None:
        """Raise EngineDead or Unavailable if no engine serves; the first engine's error counts."""
        errors: list[Exception] = []
        for member in self.members:
            try:
                member.engine.check_health()
                member.watchdog.check()
            except Exception as error:
                errors.append(error)
            else:
                return
        raise errors[0]

    def statistics(self) -> EngineStatistics:
        """Return the figures of all engines together."""
        return combined([member.engine.statistics() for member in self.members])

    # One engine

    def lose(self, member: PooledEngine) -> None:
        """Note that an engine does not accept requests."""
        if member.up:
            member.up, member.hope = False, member.supervisor.restarts_again
            if not any(other.up for other in self.members):
                self._up = anyio.Event()
            self._on_lost(member)

    def _busy(self, member: PooledEngine) -> int:
        """Return the number of requests that an engine should be working on.

        An engine that reports its death but goes on would leave its requests waiting, so all
        requests count as its own then.
        """
        if not member.up and not member.drains:
            return sum(1 for _ in self._open_requests)
        return sum(open_request.state.in_engine for open_request in _RequestsOf(self._open_requests, member.number))

    def _engine_up(self, member: PooledEngine) -> None:
        member.up, member.drains = True, False
        self._up.set()
        self._on_up(member)

    def _engine_down(self, member: PooledEngine, error: EngineDead, pause: float | None) -> None:
        self.lose(member)
        if pause is None:
            member.failure = error
        else:
            member.back = self._clock() + pause + member.supervisor.start_seconds
        self._on_down(member, error)
