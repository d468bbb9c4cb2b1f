"""What a manager asks of admission: `AdmissionController` answers in this process, another may answer for several of them."""

from typing import Protocol

import attrs

from llmserve.admission.refusal import Refused
from llmserve.admission.ticket import Ticket


@attrs.frozen(kw_only=True)
class AdmissionStatistics:
    """A snapshot. `limit` is None where the policy has no number; `drain_rate` is departures per second, None if unknown."""

    running: int
    waiting: int
    limit: int | None
    max_waiting: int | None
    admitted: int
    refused: dict[str, int]
    drain_rate: float | None


class Admission(Protocol):
    """Decides who runs, who waits and who is refused. Nothing here waits."""

    @property
    def max_wait(self) -> float | None:
        """Seconds after which the caller gives up a ticket that still waits; None where that is seen to elsewhere."""

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        """Take a new ticket in: afterwards it runs or waits, or the reason why not is returned and it is done. One that waits may be
        refused later: then `ticket.refused` says why."""

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Take a ticket out, wherever it is, and return those that were handed a slot by it. The second time does nothing."""

    def give_up(self, ticket: Ticket, now: float) -> tuple[Refused, list[Ticket]]:
        """A waiting ticket's patience is over: count it as refused and say when to come back."""

    def statistics(self, now: float) -> AdmissionStatistics: ...
