"""Simulates clients and engines in virtual time; calls admission as the manager calls it."""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import attrs

from benchmarks.overload import engine as simulated
from benchmarks.overload.engine import StepEngine
from benchmarks.overload.traffic import Request
from llmserve.admission import AdmissionController, Ticket, TicketState, step_tokens

Retry = Literal["none", "obey", "naive"]
# Number of retries before a client gives up.
TRIES = 3
# Mean pause of a naive client in seconds.
IMPATIENCE = 0.05


@attrs.define
class World:
    """Simulates requests to their end.

    Args:
        engines: The engines, in the order of their numbers.
        patience: Seconds after which a client without a first token disconnects.
        retry: What a refused client does.
        slowness: (time, factor) pairs: from that time on, the steps of all engines take `factor` times as
            long.
        watch: Called after each step.
    """

    engines: Sequence[StepEngine]
    admission: AdmissionController
    patience: float = 10.0
    retry: Retry = "none"
    slowness: tuple[tuple[float, float], ...] = ()
    seed: int = 0
    watch: Callable[[], None] | None = None
    now: float = 0.0
    _events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = attrs.field(factory=list)
    _count: "itertools.count[int]" = attrs.field(factory=itertools.count)
    _open: dict[Ticket, tuple[Request, simulated.Sequence]] = attrs.field(factory=dict)
    # The ends of the steps that are under way, and the engines that may start one.
    _steps: list[tuple[float, int]] = attrs.field(factory=list)
    _ready: set[int] = attrs.field(factory=set)
    _stepping: set[int] = attrs.field(factory=set)
    _rng: random.Random = attrs.field(factory=random.Random)

    def run(self, requests: Iterable[Request], end: float) -> None:
        """Run until the clock reaches `end`, or until no event is left."""
        self._rng = random.Random(f"world {self.seed}")
        arrivals = iter(requests)
        upcoming = next(arrivals, None)
        for time, factor in self.slowness:
            self._at(time, self._slow, factor)
        while True:
            self._start_steps()
            times = [
                upcoming.due if upcoming is not None else float("inf"),
                self._events[0][0] if self._events else float("inf"),
                self._steps[0][0] if self._steps else float("inf"),
            ]
            moment = min(times)
            if moment > end or moment == float("inf"):
                return
            self.now = moment
            if moment == times[2]:
                self._end_step()
            elif moment == times[0]:
                assert upcoming is not None
                self._send(upcoming)
                upcoming = next(arrivals, None)
            else:
                _, _, act, args = heapq.heappop(self._events)
                act(*args)

    def _at(self, time: float, act: Callable[..., None], *args: object) -> None:
        heapq.heappush(self._events, (time, next(self._count), act, args))

    def _slow(self, factor: float) -> None:
        for engine in self.engines:
            engine.slowness = factor

    def _start_steps(self) -> None:
        for number in sorted(self._ready - self._stepping):
            if self.engines[number].busy:
                self._stepping.add(number)
                heapq.heappush(self._steps, (self.now + self.engines[number].start(), number))
        self._ready.clear()

    def _send(self, request: Request) -> None:
        request.tries += 1
        request.sent = self.now
        ticket = Ticket(request_id=f"{request.number}.{request.tries}", tenant=request.tenant, arrived=self.now)
        refused = self.admission.screen(ticket, self.now)
        if refused is None:
            ticket.prompt_tokens, ticket.max_tokens, ticket.prefix = request.prompt, 4096, request.prefix
            refused = self.admission.offer(ticket, self.now)
        sequence = simulated.Sequence(ticket, request.prompt, request.output, request.blocks, ticket.priority)
        if refused is not None:
            self._refused(request, refused.retry_after)
            return
        self._open[ticket] = request, sequence
        self._at(self.now + self.patience, self._lose_patience, ticket)
        if ticket.state is TicketState.RUNNING:
            self._submit(ticket)
        elif ticket.expires < self.now + self.patience:
            self._at(ticket.expires, self._expire, ticket)

    def _submit(self, ticket: Ticket) -> None:
        request, sequence = self._open[ticket]
        request.admitted, request.engine = self.now, ticket.engine
        self.engines[ticket.engine].submit(sequence)
        self._ready.add(ticket.engine)

    def _refused(self, request: Request, hint: float) -> None:
        request.refusals += 1
        request.refused_after = self.now - request.sent
        if request.hint is None:
            request.hint, request.hinted_at = hint, self.now
        if self.retry == "none" or request.tries > TRIES:
            return
        pause = hint if self.retry == "obey" else IMPATIENCE * (0.5 + self._rng.random())
        self._at(self.now + pause, self._send, request)

    def _wake(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            if ticket.state is TicketState.RUNNING:
                self._submit(ticket)
            elif ticket.refused is not None:
                request, _ = self._open.pop(ticket)
                self._refused(request, ticket.refused.retry_after)

    def _expire(self, ticket: Ticket) -> None:
        if ticket.state is not TicketState.WAITING or ticket not in self._open:
            return
        refused, woken = self.admission.give_up(ticket, self.now)
        if refused is None:
            self._at(ticket.expires, self._expire, ticket)
        else:
            request, _ = self._open.pop(ticket)
            self._refused(request, refused.retry_after)
        self._wake(woken)

    def _lose_patience(self, ticket: Ticket) -> None:
        if ticket not in self._open or self._open[ticket][0].first is not None:
            return
        request, sequence = self._open.pop(ticket)
        request.left = True
        if ticket.state is TicketState.RUNNING:
            self.engines[ticket.engine].abort(sequence)
            request.computed += sequence.computed
        self._wake(self.admission.leave(ticket, self.now))

    def _end_step(self) -> None:
        _, number = heapq.heappop(self._steps)
        self._stepping.remove(number)
        self._ready.add(number)
        engine = self.engines[number]
        first, complete = engine.finish()
        for sequence in first:
            ticket = sequence.owner
            assert isinstance(ticket, Ticket)
            self._open[ticket][0].first = self.now
            self._wake(self.admission.first_token(ticket, self.now))
        for sequence in complete:
            ticket = sequence.owner
            assert isinstance(ticket, Ticket)
            request, _ = self._open.pop(ticket)
            request.finished = self.now
            request.computed += sequence.computed + sequence.output
            ticket.generated, ticket.complete = sequence.output, True
            self._wake(self.admission.leave(ticket, self.now))
        self._wake(self.admission.record(engine.metrics_snapshot(), self.now))
        if (tokens := step_tokens(self.admission.policy, number)) is not None:
            engine.step_tokens = tokens
        if self.watch is not None:
            self.watch()
