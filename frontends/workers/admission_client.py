"""The worker's side of admission, where the supervisor makes every decision."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from frontends.workers.messages import Declined, FirstToken, Granted, Leave, Move, Offer, StepCount
from llmserve import TenantTable
from llmserve.admission import AdmissionStatistics, Decision, EngineSample, Refusal, Refused, Ticket, TicketState

# Minimum seconds between two reports. A small model's steps on a fast GPU take 3 ms, so a report
# may cover several steps.
TELL_SECONDS = 0.01
SAMPLE_FIELDS = tuple(field for field in StepCount.__struct_fields__ if field != "told")


class AdmissionClient:
    """Satisfies `llmserve.admission.Admission`.

    A ticket waits until the supervisor has answered, which takes 0.1 ms where a slot is free.
    `limit` and `max_waiting` are those of the supervisor's admission.
    """

    def __init__(self, send: Callable[[Any], None]) -> None:
        self.limit: int | None = None
        self.max_waiting: int | None = None
        self._send = send
        self._numbers: dict[Ticket, int] = {}
        self._tickets: dict[int, Ticket] = {}
        self._last = 0
        self._told: dict[int, float] = {}
        self._admitted = 0
        self._refused: Counter[str] = Counter()

    def screen(self, ticket: Ticket, now: float) -> Refused | None:
        """Refuse nothing: only the supervisor knows the queue."""
        return None

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        if ticket.state is not TicketState.NEW:
            raise RuntimeError(f"a ticket may be offered only once; this one is {ticket.state.value}")
        self._last += 1
        self._numbers[ticket], self._tickets[self._last] = self._last, ticket
        ticket.state = TicketState.WAITING
        self._send(
            Offer(
                number=self._last,
                request_id=ticket.request_id,
                tenant=ticket.tenant,
                priority=ticket.priority,
                prompt_tokens=ticket.prompt_tokens,
                max_tokens=ticket.max_tokens,
                arrived=ticket.arrived,
                deadline=ticket.deadline if ticket.deadline < math.inf else None,
                best_effort=ticket.best_effort,
                prefix=ticket.prefix,
            )
        )
        return None

    def first_token(self, ticket: Ticket, now: float) -> list[Ticket]:
        if ticket in self._numbers:
            self._send(FirstToken(self._numbers[ticket]))
        return []

    def record(self, sample: EngineSample, now: float) -> list[Ticket]:
        """Report an engine's metrics to the supervisor, at most once every `TELL_SECONDS`."""
        if now - self._told.get(sample.engine, -math.inf) >= TELL_SECONDS:
            self._told[sample.engine] = now
            self._send(StepCount(told=now, **{name: getattr(sample, name) for name in SAMPLE_FIELDS}))
        return []

    def suspend(self, now: float, engine: int = 0) -> None:
        """Do nothing: the supervisor knows when an engine is down."""

    def resume(self, now: float, engine: int = 0, *, emptied: bool = True) -> list[Ticket]:
        return []

    def move(self, ticket: Ticket, now: float) -> None:
        """Ask for another engine: the ticket waits until the supervisor has granted it one."""
        if ticket in self._numbers:
            ticket.state = TicketState.WAITING
            self._send(Move(self._numbers[ticket]))

    def set_tenants(self, table: TenantTable) -> None:
        """Do nothing: the supervisor's table applies."""

    def explain(self, request_id: str) -> list[Decision]:
        """Return nothing: the supervisor keeps the decisions."""
        return []

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        number = self._numbers.pop(ticket, None)
        if number is not None:
            del self._tickets[number]
            ticket.state = TicketState.DONE
            self._send(Leave(number, ticket.generated, ticket.complete))
        # The supervisor decides who gets the slot.
        return []

    def give_up(self, ticket: Ticket, now: float) -> tuple[Refused, list[Ticket]]:
        raise RuntimeError("the supervisor ends the wait of tickets")

    def receive(self, message: Granted | Declined, now: float) -> None:
        """Apply a decision of the supervisor."""
        match message:
            case Granted():
                self._granted(message, now)
            case Declined():
                self._declined(message)

    def _granted(self, message: Granted, now: float) -> None:
        # A ticket that has left gave the slot back with its Leave.
        ticket = self._tickets.get(message.number)
        if ticket is not None:
            self._admitted += ticket.granted is None
            ticket.state, ticket.granted, ticket.engine = TicketState.RUNNING, now, message.engine
            ticket.wake()

    def _declined(self, message: Declined) -> None:
        self._refused[message.reason] += 1
        ticket = self._tickets.pop(message.number, None)
        if ticket is not None:
            del self._numbers[ticket]
            ticket.state, ticket.refused = TicketState.DONE, Refused(Refusal(message.reason), message.retry_after)
            ticket.wake()

    def statistics(self, now: float) -> AdmissionStatistics:
        """Return the statistics. The counts are of this worker only."""
        running = sum(ticket.state is TicketState.RUNNING for ticket in self._numbers)
        return AdmissionStatistics(
            running=running,
            waiting=len(self._numbers) - running,
            limit=self.limit,
            max_waiting=self.max_waiting,
            admitted=self._admitted,
            refused=dict(self._refused),
            drain_rate=None,
        )
