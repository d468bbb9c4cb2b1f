"""A ticket represents one request in admission."""

import math
from collections.abc import Callable, Iterable
from enum import Enum
from typing import NamedTuple

import attrs

from llmserve.admission.refusals import Refused

# A band worse than any priority that a request can have: its tickets wait for leftover capacity.
BEST_EFFORT = 1 << 32


class TicketState(Enum):
    """NEW -> (WAITING ->) RUNNING -> DONE; a refused or abandoned one goes straight to DONE."""

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


class Room(NamedTuple):
    """Room for `tickets` more tickets, each with these numbers of tokens of a prompt and of an answer.

    Attributes:
        overdraft: Share of the KV cache by which a forecast may exceed its size.
    """

    tickets: int = 0
    prompt_tokens: int = 0
    answer_tokens: float = 0.0
    overdraft: float = 0.0


NO_ROOM = Room()


def _nothing() -> None:
    pass


@attrs.define(eq=False, kw_only=True)
class Ticket:
    """One sequence that asks for a slot.

    The user of the admission fills in:
        request_id, tenant: For whom the ticket is.
        priority: Smaller goes first.
        prompt_tokens, max_tokens: Tokens of the prompt, and the maximum for the answer.
        arrived: When the client's request arrived; TTFT counts from it. None means the time of the
            offer.
        deadline: When the whole answer must be complete, on the same clock.
        prefix: The keys of the prompt's beginnings (`pool.prefixes.prefix_keys`); empty where there
            is one engine.
        home: The engine that the ticket's process prefers, of several; None without a preference.
        best_effort: Whether to serve the ticket late instead of refusing it because of the SLO.
        wake: Called by the user of the admission when a waiting ticket got a slot or was refused. A
            controller does not call it.
        generated, complete: Tokens of the answer, and whether the answer is complete. Set before
            the ticket leaves.

    The user may read:
        state: See `TicketState`.
        granted: When the ticket started.
        engine: The number of the engine that a running ticket was granted to.
        refused: Why it was refused.
        expires: When a waiting ticket's patience ends.

    The controller keeps its own figures in the rest. A policy may read them; it keeps its own
    figures itself:
        cost: Cost in the queue, in the policy's unit.
        band, queued: The band in the queue, and when the ticket entered the queue.
        reserved: Tokens reserved from the tenant's limit.
        expected_tokens: Expected length of the answer; grows with the answer.
        cached_tokens: Prompt tokens that the engine's cache is expected to have, if there are several.
        overtaken: How many tickets have overtaken this one at the head of the queue.
        relegated: Whether the ticket waits for leftover capacity.
        yields: Whether its tenant asks for more than its share.
        room: What it leaves free in the engine when it starts, for tenants that ask for less.
    """

    request_id: str = ""
    tenant: str = "default"
    priority: int = 0
    prompt_tokens: int = 0
    max_tokens: int | None = None
    arrived: float | None = None
    deadline: float = math.inf
    prefix: tuple[int, ...] = ()
    home: int | None = None
    best_effort: bool = False
    wake: Callable[[], None] = _nothing
    generated: int = 0
    complete: bool = False

    state: TicketState = TicketState.NEW
    granted: float | None = None
    engine: int = 0
    refused: Refused | None = None
    expires: float = math.inf

    cost: float = 1.0
    band: int = 0
    queued: float = 0.0
    reserved: float = 0.0
    expected_tokens: float = 0.0
    cached_tokens: int = 0
    overtaken: int = 0
    relegated: bool = False
    yields: bool = False
    room: Room = NO_ROOM

    def relegate(self, expires: float) -> None:
        """Let the ticket wait for leftover capacity, until `expires`."""
        self.relegated, self.band, self.expires = True, BEST_EFFORT, expires


def wake(tickets: Iterable[Ticket]) -> None:
    """Notify the users of tickets that got a slot, or were refused after waiting."""
    for ticket in tickets:
        ticket.wake()
