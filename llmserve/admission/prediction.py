"""What a policy that predicts adds to `Policy`: the terms of each ticket, learned from the engine.

The controller makes the tuples here for every request, and attrs takes four times as long for it.
"""

from typing import Any, NamedTuple, Protocol

import attrs

from llmserve.admission.refusals import Refusal
from llmserve.admission.ticket import Ticket


# Not frozen, because that takes twice as long to make, and every step makes one.
@attrs.define(kw_only=True)
class EngineSample:
    """The engine's figures after one or several steps: counters since its start, and its state.

    `steps` and `busy_seconds` count only steps that followed another one without a pause, so their
    quotient is the duration of a step. `kv_usage` is the share of the KV cache in use, 0 to 1.
    `kv_tokens` is its size, None if unknown. `cached_tokens` are those of the prompts that the prefix
    cache had. `engine` is the engine's number in its pool.
    """

    engine: int = 0
    steps: float = 0
    busy_seconds: float = 0.0
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    kv_tokens: int | None = None
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0


class QueueState(NamedTuple):
    """What a policy may know about the queue.

    Attributes:
        backlog: Seconds to serve the rest of the demand, including refused requests.
        interval: Seconds between two tickets that leave the queue, 0 if unknown.
        pace: Seconds for each unit of cost, 0 if unknown.
        pressure: Demand divided by the service rate.
        own_pressure: The tenant's demand divided by its share of the rate; below 1 the tenant does
            not cause the overload.
        answer_tokens: Expected length of an answer.
    """

    backlog: float
    interval: float
    pace: float
    pressure: float
    own_pressure: float
    answer_tokens: float


class Terms(NamedTuple):
    """The terms on which a ticket is accepted.

    Attributes:
        cost: The ticket's cost in the policy's own unit, in which the queue counts.
        expires: When the patience of the ticket ends if it still waits.
        seconds: Predicted time from the start to the complete answer, for the deadline.
        refusal: Why the ticket could not succeed even if it started now; None if it could.
    """

    cost: float
    expires: float
    seconds: float = 0.0
    refusal: Refusal | None = None

    def objection(self, ticket: Ticket, wait: float | None, patience: float, now: float) -> Refusal | None:
        """Return why a ticket with this predicted wait is refused; None for a wait that is unknown, or none."""
        if self.refusal is not None:
            return self.refusal
        if now + (wait or 0.0) + self.seconds > ticket.deadline:
            return Refusal.DEADLINE_TOO_SHORT
        return Refusal.WOULD_WAIT_TOO_LONG if wait is not None and wait > patience else None


class PolicyFigures(NamedTuple):
    """A policy's state, for statistics and the decision log.

    Attributes:
        counting: Why the policy only counts although it could predict; None otherwise.
        margin: Share of the target time per token that the policy uses; None if it has none.
        step_seconds: Duration of the engine's mean step; None if unknown.
        step_tokens: Maximum number of tokens in a step that the policy asks of its engine; None if
            it asks for none.
    """

    counting: str | None = None
    margin: float | None = None
    step_seconds: float | None = None
    step_tokens: int | None = None

    def statistics(self) -> dict[str, Any]:
        """Return the figures of `AdmissionStatistics` that a policy has."""
        return {"counting": self.counting, "step_tokens": self.step_tokens}


class Predictor(Protocol):
    """The methods that a policy has in addition to those of `Policy` if it predicts."""

    def terms(self, ticket: Ticket, queue: QueueState, now: float) -> Terms:
        """Return the terms of an offered ticket, which has its `expected_tokens`. Called first."""

    def patience(self, ticket: Ticket, queue: QueueState) -> float:
        """Return the longest predicted wait in seconds with which a ticket is accepted.

        The controller also asks before the prompt is tokenized, with 0 `prompt_tokens`.
        """

    def overdue(self, ticket: Ticket, queue: QueueState, now: float) -> float | None:
        """Return until when a ticket may wait after its patience ended.

        With None, or a time that has passed, the ticket is refused.
        """

    def first_token(self, ticket: Ticket, now: float) -> None:
        """Note the first token of a running ticket."""

    def record(self, sample: EngineSample, now: float) -> None:
        """Learn from the engine's steps. `expected_tokens` of running tickets is up to date."""

    def figures(self) -> PolicyFigures: ...


_NO_FIGURES = PolicyFigures()


@attrs.frozen
class NoPrediction:
    """The `Predictor` of policies that only count. `max_wait` is in seconds."""

    max_wait: float
    uses_lengths = False

    def terms(self, ticket: Ticket, queue: QueueState, now: float) -> Terms:
        return Terms(1.0, now + self.max_wait)

    def patience(self, ticket: Ticket, queue: QueueState) -> float:
        return self.max_wait

    def overdue(self, ticket: Ticket, queue: QueueState, now: float) -> float | None:
        return None

    def first_token(self, ticket: Ticket, now: float) -> None:
        pass

    def record(self, sample: EngineSample, now: float) -> None:
        pass

    def figures(self) -> PolicyFigures:
        return _NO_FIGURES
