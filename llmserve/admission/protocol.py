"""What a manager asks of admission: `AdmissionController` answers in this process, another may answer for several of them."""

from typing import Protocol

import attrs

from llmserve.admission.decisions import Decision
from llmserve.admission.policies import EngineSample
from llmserve.admission.refusals import Refused
from llmserve.admission.ticket import Ticket
from llmserve.config import TenantTable


@attrs.frozen(kw_only=True)
class AdmissionStatistics:
    """A snapshot.

    Attributes:
        policy: its name; `counting` says why it only counts where it could predict, None if it does what it can.
        limit: None where the policy has no number.
        refused: by reason; `held`: by constraint, how often the head of the line was held back by it.
        drain_rate: requests a second that leave the line while it stands, None if unknown.
        predicted_wait: of a newcomer of a new tenant, in seconds; None if unknown.
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
    drain_rate: float | None
    predicted_wait: float | None = None


class Admission(Protocol):
    """Decides who runs, who waits and who is refused. Nothing here waits."""

    def screen(self, ticket: Ticket, now: float) -> Refused | None:
        """Whether a new ticket would be refused now whatever its prompt's length, and why: asked before that is known, because finding
        out costs something. One that is refused is done."""

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        """Take a new ticket in: afterwards it runs or waits, or the reason why not is returned and it is done. One that waits may be
        refused later: then `ticket.refused` says why. At `ticket.expires` its user gives it up."""

    def first_token(self, ticket: Ticket, now: float) -> list[Ticket]:
        """A running one has its first token; returns those whose wait is over by it: they run, or are refused."""

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Take a ticket out, wherever it is, and return those whose wait is over by it. The second time does nothing."""

    def give_up(self, ticket: Ticket, now: float) -> tuple[Refused | None, list[Ticket]]:
        """A waiting ticket's patience is over: it is refused, and told when to come back; or (None) it waits on for what is left over,
        until its new `expires`."""

    def suspend(self, now: float) -> None:
        """The engine is gone: until it is back nobody starts, and nobody's patience ends."""

    def resume(self, now: float) -> list[Ticket]:
        """It is back: patience goes on where it stood. Returns those whose wait is over."""

    def record(self, sample: EngineSample, now: float) -> list[Ticket]:
        """What the engine tells of its steps; returns those whose wait is over by it."""

    def set_tenants(self, table: TenantTable) -> None:
        """From now on these weights and limits hold; what tenants have taken is kept."""

    def explain(self, request_id: str) -> list[Decision]:
        """What was decided about a request and why, the oldest first; nothing if that is too long ago."""

    def statistics(self, now: float) -> AdmissionStatistics: ...
