"""A worker's side of admission: what its manager takes for the controller, and every decision is the owner's."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from frontends.workers.messages import Declined, Granted, Leave, Offer
from llmserve.admission import AdmissionStatistics, Refusal, Refused, Ticket, TicketState


class RemoteAdmission:
    """Satisfies `llmserve.admission.Admission`. A ticket waits until the owner has answered, which takes a tenth of a millisecond where
    there is room."""

    # The owner's clock runs for all.
    max_wait = None

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._numbers: dict[Ticket, int] = {}
        self._tickets: dict[int, Ticket] = {}
        self._last = 0
        self._admitted = 0
        self._refused: Counter[str] = Counter()

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        if ticket.state is not TicketState.NEW:
            raise RuntimeError(f"a ticket is offered once; this one is {ticket.state.value}")
        self._last += 1
        self._numbers[ticket], self._tickets[self._last] = self._last, ticket
        ticket.state = TicketState.WAITING
        self._send(Offer(self._last, ticket.request_id, ticket.tenant, ticket.priority))
        return None

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        number = self._numbers.pop(ticket, None)
        if number is not None:
            del self._tickets[number]
            ticket.state = TicketState.DONE
            self._send(Leave(number))
        # Whom the slot goes to is the owner's to say.
        return []

    def give_up(self, ticket: Ticket, now: float) -> tuple[Refused, list[Ticket]]:
        raise RuntimeError("the owner gives up waiting tickets by itself")

    def granted(self, message: Granted, now: float) -> None:
        # One that has left meanwhile gave it back with its Leave.
        ticket = self._tickets.get(message.number)
        if ticket is not None:
            ticket.state, ticket.granted = TicketState.RUNNING, now
            self._admitted += 1
            ticket.wake()

    def declined(self, message: Declined) -> None:
        self._refused[message.reason] += 1
        ticket = self._tickets.pop(message.number, None)
        if ticket is not None:
            del self._numbers[ticket]
            ticket.state, ticket.refused = TicketState.DONE, Refused(Refusal(message.reason), message.retry_after)
            ticket.wake()

    def statistics(self, now: float) -> AdmissionStatistics:
        """Of this worker alone; limits and rates are the owner's."""
        running = sum(ticket.state is TicketState.RUNNING for ticket in self._numbers)
        return AdmissionStatistics(
            running=running,
            waiting=len(self._numbers) - running,
            limit=None,
            max_waiting=None,
            admitted=self._admitted,
            refused=dict(self._refused),
            drain_rate=None,
        )
