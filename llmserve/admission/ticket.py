"""A request's place in admission."""

import math
from collections.abc import Callable, Iterable
from enum import Enum

import attrs

from llmserve.admission.refusals import Refused


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
    """One sequence that wants a slot: who wants it, what it is expected to cost, and what became of it.

    What its user fills in:
        request_id, tenant, priority (smaller goes first).
        prompt_tokens, max_tokens: of the prompt, and most of the answer.
        arrived: when the client's request came, which is what a TTFT counts from; None means when it is offered.
        deadline: when the whole answer must be there, on the same clock.
        best_effort: serve it late rather than refuse it for a promise's sake.
        wake: called by the user of the admission when a waiting ticket has been handed a slot, or refused after all; a
            controller itself calls nothing.
        generated, complete: tokens of the answer and whether that is all of it, filled in before it leaves.

    The rest belongs to the admission. `state`, `granted`, `refused`, and `expires`, when a waiting one is given up, are for its user
    to read. What it counts by: `cost` in the line, where it is in a `band` since `queued`; `reserved` of its tenant's tokens;
    `expected_tokens` of the answer, which has come to the `bucket` of lengths; prompts `ahead` of its first token, its own
    included; when `first_token` came, at which of the engine's `steps`; whether it was `relegated` to what is left over; and
    whether it may be `late`.
    """

    request_id: str = ""
    tenant: str = "default"
    priority: int = 0
    prompt_tokens: int = 0
    max_tokens: int | None = None
    arrived: float | None = None
    deadline: float = math.inf
    best_effort: bool = False
    wake: Callable[[], None] = _nothing
    generated: int = 0
    state: TicketState = TicketState.NEW
    granted: float | None = None
    refused: Refused | None = None
    expires: float = math.inf
    cost: float = 1.0
    reserved: float = 0.0
    band: int = 0
    queued: float = 0.0
    expected_tokens: float = 0.0
    first_token: float | None = None
    steps: float = 0.0
    ahead: int = 0
    bucket: int = -1
    complete: bool = False
    relegated: bool = False
    late: bool = False


def wake(tickets: Iterable[Ticket]) -> None:
    """Tell those that were handed a slot, or refused after all."""
    for ticket in tickets:
        ticket.wake()
