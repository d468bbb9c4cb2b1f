"""A request's place in admission."""

from collections.abc import Callable
from enum import Enum

import attrs


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

    `wake` is called by the controller's user when a waiting ticket has been handed a slot; the controller itself calls
    nothing. `state` and `granted` belong to the controller.
    """

    tenant: str = "default"
    priority: int = 0
    wake: Callable[[], None] = _nothing
    state: TicketState = TicketState.NEW
    granted: float | None = None
