"""The protocol between a manager and admission.

`AdmissionController` implements it in this process. Another class may do so for several processes.
"""

from typing import Protocol

import attrs

from llmserve.admission.decisions import Decision
from llmserve.admission.prediction import EngineSample
from llmserve.admission.refusals import Refused
from llmserve.admission.ticket import Ticket
from llmserve.config import TenantTable


@attrs.frozen(kw_only=True)
class AdmissionStatistics:
    """A snapshot of admission.

    Attributes:
        policy: The policy's name.
        counting: Why the policy only counts although it could predict; None otherwise.
        limit: Maximum number of running tickets, None if the policy has no limit.
        refused: Number of refusals by reason.
        held: How often each constraint held the queue's head.
        drain_rate: Tickets per second that leave the queue while there is one, None if unknown.
        step_tokens: Maximum number of tokens in a step that the policy asks of the engine, with
            several engines of that which got the last ticket; None if it asks for none.
        predicted_wait: Wait of a newcomer of a new tenant in seconds; None if unknown.
    """

    policy: str = ""
    counting: str | None = None
    running: int
    waiting: int
    limit: int | None
    max_waiting: int | None
    admitted: int
    refused: dict[str, int]
    held: dict[str, int] = attrs.field(factory=dict)
    step_tokens: int | None = None
    drain_rate: float | None
    predicted_wait: float | None = None


class Admission(Protocol):
    """Decides which tickets run, wait or are refused. No method waits."""

    def screen(self, ticket: Ticket, now: float) -> Refused | None:
        """Refuse a new ticket that would be refused at any prompt length; return the reason.

        The manager calls this before it tokenises the prompt, which costs time. A refused ticket is
        DONE.
        """

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        """Accept a new ticket, which then runs or waits; or refuse it and return the reason.

        A waiting ticket may be refused later: then `ticket.refused` has the reason. The caller
        calls `give_up` at `ticket.expires`.
        """

    def first_token(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Note a running ticket's first token; return the tickets that now run or are refused."""

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Remove a ticket, running or waiting; return the tickets that stop waiting. Idempotent."""

    def give_up(self, ticket: Ticket, now: float) -> tuple[Refused | None, list[Ticket]]:
        """End a waiting ticket's patience: refuse it, or return None and give it a new `expires`.

        In the second case it waits for leftover capacity.
        """

    def suspend(self, now: float, engine: int = 0) -> None:
        """Start no tickets on an engine until it is back.

        Without any engine, patience does not run out until one is back.
        """

    def resume(self, now: float, engine: int = 0, *, emptied: bool = True) -> list[Ticket]:
        """Start tickets on an engine again, with the patience that was left.

        `emptied` says that it is a new process, without a prefix cache. Return the tickets that
        stop waiting.
        """

    def move(self, ticket: Ticket, now: float) -> None:
        """Give a running ticket another engine at once, because its own is suspended.

        Without any other engine, it keeps its own.
        """

    def record(self, sample: EngineSample, now: float) -> list[Ticket]:
        """Process an engine's figures of its steps; return the tickets that stop waiting."""

    def set_tenants(self, table: TenantTable) -> None:
        """Replace the weights and limits of tenants. Usage that is already counted stays."""

    def explain(self, request_id: str) -> list[Decision]:
        """Return the decisions about a request, the oldest first; old ones are dropped."""

    def statistics(self, now: float) -> AdmissionStatistics: ...
