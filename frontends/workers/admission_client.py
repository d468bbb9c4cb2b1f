"""A worker's side of admission: what its manager takes for the controller, and every decision is the owner's."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from frontends.workers.messages import Declined, FirstToken, Granted, Leave, Offer, StepCount
from llmserve import TenantTable
from llmserve.admission import AdmissionStatistics, Decision, EngineSample, Refusal, Refused, Ticket, TicketState

# Steps of a small model on a fast GPU take 3 ms: a worker tells of several at once.
TELL_SECONDS = 0.01
SAMPLE_FIELDS = tuple(field for field in StepCount.__struct_fields__ if field != "told")


class AdmissionClient:
    """Satisfies `llmserve.admission.Admission`. A ticket waits until the owner has answered, which takes a tenth of a millisecond where
    there is room. `limit` and `max_waiting` are the owner's."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self.limit: int | None = None
        self.max_waiting: int | None = None
        self._send = send
        self._numbers: dict[Ticket, int] = {}
        self._tickets: dict[int, Ticket] = {}
        self._last = 0
        self._told = -math.inf
        self._admitted = 0
        self._refused: Counter[str] = Counter()

    def screen(self, ticket: Ticket, now: float) -> Refused | None:
        """Nobody is turned away unseen: what stands in line the owner knows."""
        return None

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        if ticket.state is not TicketState.NEW:
            raise RuntimeError(f"a ticket is offered once; this one is {ticket.state.value}")
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
            )
        )
        return None

    def first_token(self, ticket: Ticket, now: float) -> list[Ticket]:
        if ticket in self._numbers:
            self._send(FirstToken(self._numbers[ticket]))
        return []

    def record(self, sample: EngineSample, now: float) -> list[Ticket]:
        """Tell the owner, but not more often than it matters to a wait."""
        if now - self._told >= TELL_SECONDS:
            self._told = now
            self._send(StepCount(told=now, **{name: getattr(sample, name) for name in SAMPLE_FIELDS}))
        return []

    def suspend(self, now: float) -> None:
        """The owner knows when the engine is gone."""

    def resume(self, now: float) -> list[Ticket]:
        return []

    def set_tenants(self, table: TenantTable) -> None:
        """The owner's table is the one that holds."""

    def explain(self, request_id: str) -> list[Decision]:
        """Nothing: the owner keeps the log."""
        return []

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        number = self._numbers.pop(ticket, None)
        if number is not None:
            del self._tickets[number]
            ticket.state = TicketState.DONE
            self._send(Leave(number, ticket.generated, ticket.complete))
        # Whom the slot goes to is the owner's to say.
        return []

    def give_up(self, ticket: Ticket, now: float) -> tuple[Refused, list[Ticket]]:
        raise RuntimeError("the owner gives up waiting tickets by itself")

    def receive(self, message: Granted | Declined, now: float) -> None:
        """The owner's word."""
        match message:
            case Granted():
                self._granted(message, now)
            case Declined():
                self._declined(message)

    def _granted(self, message: Granted, now: float) -> None:
        # One that has left meanwhile gave it back with its Leave.
        ticket = self._tickets.get(message.number)
        if ticket is not None:
            ticket.state, ticket.granted = TicketState.RUNNING, now
            self._admitted += 1
            ticket.wake()

    def _declined(self, message: Declined) -> None:
        self._refused[message.reason] += 1
        ticket = self._tickets.pop(message.number, None)
        if ticket is not None:
            del self._numbers[ticket]
            ticket.state, ticket.refused = TicketState.DONE, Refused(Refusal(message.reason), message.retry_after)
            ticket.wake()

    def statistics(self, now: float) -> AdmissionStatistics:
        """The counts are of this worker alone."""
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
