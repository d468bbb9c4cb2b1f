"""Policies decide whether one more sequence may start. They know neither queues nor tenants."""

import math
from typing import Protocol

import attrs

from llmserve.admission.refusals import Refusal
from llmserve.admission.ticket import Ticket


@attrs.frozen(kw_only=True)
class EngineSample:
    """The engine's figures after one or several steps: counters since its start, and its state.

    `steps` and `busy_seconds` count only steps that followed another one without a pause, so their
    quotient is the duration of a step. `kv_usage` is the share of the KV cache in use, 0 to 1.
    `kv_tokens` is its size, None if unknown.
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
    """What a policy may know about the queue.

    Attributes:
        backlog: Seconds to serve the rest of the demand, including refused requests.
        interval: Seconds between two tickets that leave the queue, 0 if unknown.
        pace: Seconds for each unit of cost, 0 if unknown.
        pressure: Demand divided by the service rate.
        own_pressure: The tenant's demand divided by its share of the rate; below 1 the tenant does
            not cause the overload.
    """

    backlog: float
    interval: float
    pace: float
    pressure: float
    own_pressure: float


class Policy(Protocol):
    """Decides whether a ticket may start, and learns from tickets and engine samples.

    A question does not change later decisions.
    """

    @property
    def name(self) -> str: ...

    @property
    def limit(self) -> int | None:
        """Maximum number of running tickets, for statistics and the queue's length, or None."""

    def weigh(self, ticket: Ticket) -> float:
        """Return the ticket's cost in the policy's own unit, which the queue uses. Called first."""

    def holds(self, ticket: Ticket, now: float) -> str | None:
        """Return the constraint against a start now, or None.

        It must be None if nothing runs, or no ticket would ever start.
        """

    def impossible(self, ticket: Ticket, wait: float, now: float) -> Refusal | None:
        """Return why the ticket could not succeed after this wait, or None."""

    def patience(self, ticket: Ticket, line: QueueState, now: float) -> float:
        """Return the longest predicted wait in seconds with which a ticket is accepted."""

    def expires(self, ticket: Ticket, line: QueueState, now: float) -> float:
        """Return when the patience of a ticket that still waits ends."""

    def grace(self, ticket: Ticket, line: QueueState, now: float) -> float | None:
        """Return until when a ticket may wait after its patience ended; None refuses it."""

    def on_timeout(self, ticket: Ticket) -> None:
        """Note that a ticket was refused after waiting."""

    def started(self, ticket: Ticket, now: float) -> None: ...

    def first_token(self, ticket: Ticket, now: float) -> None: ...

    def left(self, ticket: Ticket, now: float) -> float | None:
        """Note that a started ticket left; return its real cost, or None for the weighed cost."""

    def record(self, sample: EngineSample, now: float) -> None: ...

    @property
    def counting(self) -> str | None:
        """Why the policy only counts although it could predict; None otherwise."""

    @property
    def margin(self) -> float | None:
        """The share of the target time per token that the policy uses, None if it has none."""

    @property
    def step_seconds(self) -> float | None:
        """Duration of the engine's mean step in seconds, None if unknown."""


@attrs.define
class CountingPolicy:
    """A policy that only counts running tickets. `max_wait` is in seconds."""

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
    """Lets at most `limit` tickets run: `FixedLimit(8)`.

    A ticket that waits longer than `max_wait` seconds is refused.
    """

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
    """Starts every ticket at once; the engine queues what it cannot batch.

    Meant for comparisons and offline work.
    """

    limit: None = None
    name: str = "unlimited"

    def holds(self, ticket: Ticket, now: float) -> str | None:
        return None

    def started(self, ticket: Ticket, now: float) -> None:
        pass

    def left(self, ticket: Ticket, now: float) -> float | None:
        return None
