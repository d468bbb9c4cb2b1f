"""The rule that says whether one more sequence may start. Knows nothing of queues and tenants."""

import math
from typing import Protocol

import attrs

from llmserve.admission.refusals import Refusal
from llmserve.admission.ticket import Ticket


@attrs.frozen(kw_only=True)
class EngineSample:
    """What an engine tells after a step, or after several of them: counters since its start, and its state now.

    `steps` and `busy_seconds` count only steps that followed another one without a pause, so that their quotient is what a step takes.
    Of a KV cache of `kv_tokens` (None where its size is not told) the share `kv_usage` is in use, 0 to 1.
    """

    steps: float = 0
    busy_seconds: float = 0.0
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    kv_tokens: int | None = None
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


@attrs.frozen
class QueueState:
    """What a policy may know of the line.

    Attributes:
        backlog: seconds that it would take to serve what is left of all that was asked for, refused ones included.
        interval: seconds between two who leave the line, 0 if unknown.
        pace: seconds for each unit of cost, 0 if unknown.
        pressure: demand against what can be served.
        own_pressure: the tenant's demand against its share of it; below 1 the overload is not its doing.
    """

    backlog: float
    interval: float
    pace: float
    pressure: float
    own_pressure: float


class Policy(Protocol):
    """Asked whenever a slot might be given away, and told what becomes of tickets. Asking changes nothing that decides."""

    @property
    def name(self) -> str: ...

    @property
    def limit(self) -> int | None:
        """The most that may run now, for statistics and for the length of the queue; None where there is no such number."""

    def weigh(self, ticket: Ticket) -> float:
        """What it costs, in a unit of the policy's own: the line counts in it. Called once, first of all."""

    def holds(self, ticket: Ticket, now: float) -> str | None:
        """The constraint that keeps it from starting now, None if it may start. Must be None if nothing runs, or nothing ever would."""

    def impossible(self, ticket: Ticket, wait: float, now: float) -> Refusal | None:
        """Why it would be in vain to take it, if it waited for so long."""

    def patience(self, ticket: Ticket, line: QueueState, now: float) -> float:
        """The longest predicted wait of one that is taken."""

    def expires(self, ticket: Ticket, line: QueueState, now: float) -> float:
        """When it should be given up if it still waits."""

    def grace(self, ticket: Ticket, line: QueueState, now: float) -> float | None:
        """Its patience is over: until when it may wait on, and be served late; None refuses it."""

    def on_timeout(self, ticket: Ticket) -> None:
        """One was refused that had waited in vain."""

    def started(self, ticket: Ticket, now: float) -> None: ...

    def first_token(self, ticket: Ticket, now: float) -> None: ...

    def left(self, ticket: Ticket, now: float) -> float | None:
        """One that had started; returns what it has cost after all, None where that is what was weighed."""

    def record(self, sample: EngineSample, now: float) -> None: ...

    @property
    def counting(self) -> str | None:
        """Why it only counts where it could predict; None if it does what it can."""

    @property
    def margin(self) -> float | None:
        """The share of the promised time per token that it goes up to, None if it has none."""

    @property
    def step_seconds(self) -> float | None:
        """Of the engine's mean step, None if unknown."""


@attrs.define
class CountingPolicy:
    """A policy that counts heads and is told nothing else. `max_wait` is in seconds."""

    max_wait: float = attrs.field(default=math.inf, kw_only=True)
    counting: None = attrs.field(default=None, init=False)
    margin: None = attrs.field(default=None, init=False)
    step_seconds: None = attrs.field(default=None, init=False)

    def weigh(self, ticket: Ticket) -> float:
        return 1.0

    def impossible(self, ticket: Ticket, wait: float, now: float) -> Refusal | None:
        return Refusal.DEADLINE_TOO_SHORT if now + wait > ticket.deadline else None

    def patience(self, ticket: Ticket, line: QueueState, now: float) -> float:
        return self.max_wait

    def expires(self, ticket: Ticket, line: QueueState, now: float) -> float:
        return now + self.max_wait

    def grace(self, ticket: Ticket, line: QueueState, now: float) -> float | None:
        return None

    def on_timeout(self, ticket: Ticket) -> None:
        pass

    def first_token(self, ticket: Ticket, now: float) -> None:
        pass

    def record(self, sample: EngineSample, now: float) -> None:
        pass


@attrs.define
class FixedLimit(CountingPolicy):
    """At most `limit` at once: `FixedLimit(8)`. Those that wait longer than `max_wait` seconds are refused."""

    limit: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    name: str = "fixed"
    _running: int = attrs.field(default=0, init=False)

    def holds(self, ticket: Ticket, now: float) -> str | None:
        return "limit" if self._running >= self.limit else None

    def started(self, ticket: Ticket, now: float) -> None:
        self._running += 1

    def left(self, ticket: Ticket, now: float) -> float | None:
        self._running -= 1
        return None


@attrs.define
class Unlimited(CountingPolicy):
    """Everything starts at once: the engine's own queue takes what it cannot batch. For comparison, and for offline work."""

    limit: None = None
    name: str = "unlimited"

    def holds(self, ticket: Ticket, now: float) -> str | None:
        return None

    def started(self, ticket: Ticket, now: float) -> None:
        pass

    def left(self, ticket: Ticket, now: float) -> float | None:
        return None
