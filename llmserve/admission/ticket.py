"""A request's place in admission."""

from collections.abc import Callable, Iterable
from enum import Enum

import attrs

from llmserve.admission.refusal import Refused


class TicketState(Enum):
    """NEW -> (WAITING ->) RUNNING -> DONE; a refused or abandoned one goes straight to DONE."""

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


def _nothing() -> None:
    pass


@attrs.define(eq=False, kw_only=True)
class Ticket:
    """One sequence that wants a slot.

    `wake` is called by the admission's user when a waiting ticket has been handed a slot, or refused after all; a controller itself
    calls nothing. `state`, `granted` and `refused` belong to the admission. `request_id` says whose it is.
    """

    request_id: str = ""
    tenant: str = "default"
    priority: int = 0
    wake: Callable[[], None] = _nothing
    state: TicketState = TicketState.NEW
    granted: float | None = None
    refused: Refused | None = None


def wake(tickets: Iterable[Ticket]) -> None:
    """Tell those that were handed a slot, or refused after all."""
    for ticket in tickets:
        ticket.wake()
