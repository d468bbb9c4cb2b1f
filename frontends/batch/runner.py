"""Answers the lines of batches, each until it has its result, however often it must start again.

Tenants share the room in turn, by their weights, and the batches of a tenant share its turns. A line
that was stopped for other requests, or that admission refused, starts again before new lines do.
"""

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

import anyio
import attrs

from frontends.access.caller import Caller
from frontends.answers.errors import described
from frontends.batch.lines import InvalidLine, Line, Result, answered, read_line, refuse_streams
from frontends.batch.room import ALL, Room, Started, expected_tokens
from frontends.openai import sse
from llmserve import (
    EngineDead,
    EngineError,
    EngineManager,
    EngineRestarted,
    LLMServeError,
    Overloaded,
    RequestCancelled,
    State,
    TenantOverloaded,
)
from llmserve.admission.fair_queue import FairQueue
from llmserve.admission.ticket import Ticket
from llmserve.runtime.lifespan import first_of

logger = logging.getLogger(__name__)

# Seconds between two looks at the room, while a line runs or wants to.
LOOK_SECONDS = 0.01
# How often a line may be in an engine that dies, before its error is the answer.
MAX_DEATHS = 3
# The bands of lines that want to start.
AGAIN, NEW = 0, 1
# Turns, at a weight of 1, that a tenant may make up for after it had no line to start: its only batch
# has none after each turn, until it has read the next one.
CREDIT = 16.0

# Takes a path, a body and a caller; returns the answer's id and its JSON. Raises LLMServeError.
Answer = Callable[[str, bytes, Caller], Awaitable[tuple[str, bytes]]]
Put = Callable[[Result], Awaitable[None]]


class EngineGone(Exception):
    """No engine will answer any more lines."""


@attrs.define
class _Job:
    """One batch: the caller of its lines, what takes the results, and when its tenant may have more."""

    caller: Caller
    put: Put
    pause_until: float = 0.0

    async def pause(self) -> None:
        await anyio.sleep_until(self.pause_until)


class Runner:
    """Starts lines when there is room, and stops them when others need it.

    Args:
        manager: the manager, whose state says whether there is an engine.
        room: says how many lines may start.
        answer: answers one line.
    """

    def __init__(self, manager: EngineManager, room: Room, answer: Answer) -> None:
        self._manager = manager
        self._room = room
        self._answer = answer
        self._started: dict[Started, anyio.CancelScope] = {}
        # The lines that want to start; a ticket costs one turn.
        self._queue = FairQueue(weight=self._weight, aging=math.inf)
        self._queue.credit = CREDIT
        self._pause_until = 0.0
        self._change = anyio.Event()
        self.stopped = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Runner"]:
        """Look at the room while this context is entered."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch)
                yield self
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first_of(group) from None

    async def run(self, lines: AsyncIterator[tuple[int, bytes]], urls: Collection[str], caller: Caller, put: Put) -> None:
        """Answer all lines. Raises EngineGone, and what `put` raises.

        Args:
            lines: the numbers and texts of the lines.
            urls: the paths that a line may name.
            caller: the caller of all lines.
            put: takes each result, in the order in which they are complete.
        """
        job = _Job(caller, put)
        try:
            async with anyio.create_task_group() as tasks:
                async for number, text in lines:
                    try:
                        line = read_line(number, text, urls)
                    except InvalidLine as error:
                        await put(error.result)
                        continue
                    await job.pause()
                    await self._turn(NEW, line, job)
                    tasks.start_soon(self._until_answered, line, self._begin(line), job)
        except BaseExceptionGroup as group:
            raise first_of(group) from None

    # One line

    def _begin(self, line: Line) -> Started:
        started = Started(expected_tokens(line.body))
        self._started[started] = anyio.CancelScope()
        self._change.set()
        return started

    async def _until_answered(self, line: Line, started: Started, job: _Job) -> None:
        deaths = 0
        while True:
            try:
                with self._started[started]:
                    result = await self._answer_once(line, started, job.caller, last=deaths + 1 >= MAX_DEATHS)
                    self._room.answered()
                    break
            except TenantOverloaded as error:
                # Lines of other tenants go on.
                job.pause_until = anyio.current_time() + error.retry_after
            except Overloaded as error:
                # No line starts before admission may take one.
                self._room.refused(self._started)
                self._pause_until = max(self._pause_until, anyio.current_time() + error.retry_after)
            except (EngineError, RequestCancelled):
                deaths += 1
            finally:
                del self._started[started]
                self._change.set()
            if self._gone:
                raise EngineGone("the engine died and will not be restarted")
            await job.pause()
            await self._turn(AGAIN, line, job)
            started = self._begin(line)
        await job.put(result)

    async def _answer_once(self, line: Line, started: Started, caller: Caller, *, last: bool) -> Result:
        """Return the result. Raises what another attempt may answer: refusals, and deaths of the engine unless `last`."""
        mine = attrs.evolve(caller, on_arrival=started.timelines.append)
        try:
            refuse_streams(line.body)
            name, body = await self._answer(line.url, line.body, mine)
        except Overloaded:
            raise
        except LLMServeError as error:
            if isinstance(error, (EngineDead, EngineRestarted, RequestCancelled)) and (self._gone or not last):
                raise
            return _refused(line, error)
        except Exception:
            # An error in one line must not end the batch.
            logger.exception("line %d of a batch (%s) failed", line.number, line.url)
            return _refused(line, LLMServeError("an internal error: see the server's log"))
        return answered(line, 200, name, body)

    @property
    def _gone(self) -> bool:
        return self._manager.state is State.FAILED

    # All lines

    def _weight(self, tenant: str) -> float:
        limits = self._manager.config.admission.table.of(tenant)
        return limits.weight if limits else 1.0

    async def _turn(self, band: int, line: Line, job: _Job) -> None:
        """Return when a line may start."""
        go = anyio.Event()
        ticket = Ticket(tenant=job.caller.tenant or "", band=band, prompt_tokens=expected_tokens(line.body), wake=go.set)
        self._queue.push(ticket, 0.0)
        self._change.set()
        try:
            await go.wait()
        finally:
            if not go.is_set():
                self._queue.remove(ticket, 0.0)

    async def _watch(self) -> None:
        while True:
            if not (self._started or self._queue.length):
                self._change = anyio.Event()
                await self._change.wait()
            self._look()
            self._change = anyio.Event()
            with anyio.move_on_after(LOOK_SECONDS):
                await self._change.wait()

    def _look(self) -> None:
        first = self._queue.head() if self._queue.length else None
        found = self._room.look(self._started, first.prompt_tokens if first else 0)
        if found < 0:
            self._stop(-found)
        elif found and first and anyio.current_time() >= self._pause_until:
            self._queue.remove(first, 0.0)
            self._queue.charge(first.tenant, first.cost)
            first.wake()

    def _stop(self, count: int) -> None:
        """Stop lines with `count` sequences in total, or all; those that have generated least are first."""
        every = count == -ALL
        found = [one for one in self._started if every or (one.count(admitted=True) and not self._room.is_too_large(one))]
        # A line that is stopping already counts, so it is first.
        for one in sorted(found, key=lambda one: (not self._started[one].cancel_called, one.generated)):
            if count <= 0:
                break
            count -= one.count(admitted=True)
            self.stopped += not self._started[one].cancel_called
            self._started[one].cancel()


def _refused(line: Line, error: LLMServeError) -> Result:
    status, detail, _ = described(error, line.url)
    return answered(line, status, "", sse.encode(detail))
