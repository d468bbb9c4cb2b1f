"""AdmissionController decides which tickets start, wait or are refused.

It keeps three rules, each checked by a property test:
1. No ticket waits while the policy would let it start, and no ticket starts that the policy holds.
2. A slot is handed over, not released and raced for: the ticket that leaves names the next one.
   A newcomer never overtakes tickets of its own tenant. If there are several engines, the ticket
   whose prompt a free engine has cached may overtake a few.
3. A ticket leaves exactly once. If it leaves after a hand-over, the slot is passed on.
"""

from typing import Any

import attrs

from llmserve.admission.decisions import Decision, DecisionLog
from llmserve.admission.fair_queue import FairQueue
from llmserve.admission.length_estimates import AnswerLengths
from llmserve.admission.policies import Policy, adopt, predictor
from llmserve.admission.pool.policy import FEW, PoolPolicy
from llmserve.admission.prediction import EngineSample, Terms
from llmserve.admission.protocol import AdmissionStatistics
from llmserve.admission.queue_forecast import QueueForecast
from llmserve.admission.refusals import Refusal, Refused
from llmserve.admission.service_rate import ServiceRate
from llmserve.admission.tenants import Headroom, Tenants
from llmserve.admission.ticket import NO_ROOM, Ticket, TicketState
from llmserve.admission.usage import UsageDelta
from llmserve.config import TenantTable


class AdmissionController:
    """Decides about every ticket immediately, and never waits.

    Args:
        policy: Decides whether one more ticket may start.
        max_waiting: Maximum length of the queue; None sets no limit.
        max_wait: Longest time in seconds that a demoted ticket may wait for leftover capacity, and
            any ticket under a policy that neither predicts nor has a `max_wait`.
        tenants: Weights and limits; None sets none.
        aging: Seconds after which a waiting ticket moves up to the next better band.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_waiting: int | None = None,
        max_wait: float = 30.0,
        tenants: Tenants | None = None,
        aging: float = 5.0,
    ) -> None:
        self.policy = policy
        self._predictor = predictor(policy, max_wait)
        self._pool = policy if isinstance(policy, PoolPolicy) else None
        self.max_waiting = max_waiting
        self.max_wait = max_wait
        self.tenants = tenants or Tenants()
        self.log = DecisionLog()
        self._running: set[Ticket] = set()
        self._line = FairQueue(weight=self.tenants.weight, aging=aging)
        # Waiting tickets that were refused in favour of another tenant's; returned by the next
        # pump.
        self._displaced: list[Ticket] = []
        self._headroom = Headroom()
        self._rate = ServiceRate()
        self.answers = AnswerLengths()
        self.set_tenants(self.tenants.table)
        self.forecast = QueueForecast(self._line, self._rate, self.tenants, self.answers)
        self._suspended: float | None = None
        # The last ticket to start, and whether a similar one would have to wait.
        self._last: Ticket | None = None
        self._full = False

    def __repr__(self) -> str:
        limit = self.policy.limit
        return f"<AdmissionController {len(self._running)}/{limit if limit is not None else 'inf'} running, {self._line.length} waiting>"

    # One ticket

    def screen(self, ticket: Ticket, now: float) -> Refused | None:
        """Refuse a ticket that would be refused at any prompt length, before its tokenisation."""
        if not self._line.length or ticket.best_effort:
            return None
        self._rate.advance(now, full=True)
        wait = self.forecast.wait(ticket.tenant, ticket.priority)
        if wait is None:
            return None
        patience = self._predictor.patience(ticket, self.forecast.state(ticket.tenant, now))
        if wait <= patience:
            return None
        self._rate.offered(ticket.tenant, self._rate.mean_cost, now, self.tenants.weight(ticket.tenant))
        return self._refuse(ticket, self.forecast.refused(Refusal.WOULD_WAIT_TOO_LONG, ticket, wait, patience, now), now)

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        """Accept a new ticket, which then runs or waits; or refuse it and return the reason."""
        if ticket.state is not TicketState.NEW:
            raise RuntimeError(f"a ticket is offered once; this one is {ticket.state.value}")
        self._rate.advance(now, full=self._full or self._line.length > 0)
        ticket.expected_tokens = self.answers.mean(most=ticket.max_tokens)
        # The state of the queue without this ticket. Otherwise a long prompt would look like an
        # overload, and be refused for it.
        queue = self.forecast.state(ticket.tenant, now)
        terms = self._predictor.terms(ticket, queue, now)
        ticket.cost = terms.cost
        self._headroom.offered(ticket, queue, now)
        self._rate.offered(ticket.tenant, ticket.cost, now, self.tenants.weight(ticket.tenant))
        refused = self.tenants.objection(ticket, self.forecast.interval, now)
        if refused is not None:
            return self._refuse(ticket, refused, now)
        ticket.band = ticket.priority
        wait = self.forecast.wait(ticket.tenant, ticket.priority)
        patience = self._predictor.patience(ticket, queue)
        reason = self._refusal_reason(ticket, terms, wait, patience, now)
        if reason is Refusal.QUEUE_FULL and self._displace(ticket, now):
            reason = None
        if reason is None:
            ticket.expires = terms.expires
        elif ticket.best_effort and reason not in (Refusal.QUEUE_FULL, Refusal.DEADLINE_TOO_SHORT):
            ticket.relegate(now + self.max_wait)
        else:
            return self._refuse(ticket, self.forecast.refused(reason, ticket, wait, patience, now), now)
        self.tenants.take(ticket, now)
        ticket.state = TicketState.WAITING
        self._line.push(ticket, now)
        # Nothing changed for the others: the policy still holds those at the head.
        constraint = "line" if self._line.head() is not ticket else self._holds(ticket, now)
        if constraint is None:
            self._start(ticket, now)
        else:
            self._note(ticket, "relegated" if ticket.relegated else "waits", now, constraint, wait, patience)
        return None

    def first_token(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Note a running ticket's first token; return the tickets that stop waiting."""
        if ticket.state is TicketState.RUNNING:
            self.answers.first_token(ticket)
            self._predictor.first_token(ticket, now)
        return self.pump(now)

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Remove a ticket, running or waiting; return the tickets that stop waiting. Idempotent."""
        self._rate.advance(now, full=self._full or self._line.length > 0)
        state, ticket.state = ticket.state, TicketState.DONE
        if state is TicketState.RUNNING:
            self._running.remove(ticket)
            actual = self.policy.left(ticket, now)
            self.answers.left(ticket)
            if actual is not None:
                self._line.charge(ticket.tenant, actual - ticket.cost)
        elif state is TicketState.WAITING:
            self._line.remove(ticket, now)
        else:
            return []
        self.tenants.give_back(ticket, now)
        return self._pump(now)

    def give_up(self, ticket: Ticket, now: float) -> tuple[Refused | None, list[Ticket]]:
        """End a waiting ticket's patience: refuse it, or return None and give it a new `expires`.

        In the second case it waits on, to be served late or with leftover capacity.
        """
        if now < ticket.expires or self._suspended is not None:
            # The ticket got more time after its timer was set.
            return None, []
        if ticket.best_effort and not ticket.relegated:
            self._line.remove(ticket, now)
            ticket.relegate(now + self.max_wait)
            self._line.push(ticket, now)
            self._note(ticket, "relegated", now, Refusal.WAITED_TOO_LONG)
            return None, self._pump(now)
        if self._may_be_late(ticket, now):
            return None, self._pump(now)
        refused = self._reject_waiting(ticket, Refusal.WAITED_TOO_LONG, now)
        self._rate.advance(now, full=True)
        return refused, self._pump(now)

    # All tickets

    def suspend(self, now: float, engine: int = 0) -> None:
        """Start no tickets on an engine until it is back.

        Without any engine, patience does not run out until one is back.
        """
        if self._suspended is None:
            self._rate.advance(now, full=self._full or self._line.length > 0)
        if not (self._pool and self._pool.suspend(engine)) and self._suspended is None:
            self._suspended = now

    def resume(self, now: float, engine: int = 0, *, emptied: bool = True) -> list[Ticket]:
        """Start tickets again: the engine is back. Patience continues where it stopped."""
        if self._pool:
            self._pool.resume(engine, emptied=emptied)
        if self._suspended is None:
            return self.pump(now)
        for ticket in self._line:
            ticket.expires += now - self._suspended
        self._suspended = None
        self._rate.skip(now)
        return self._pump(now)

    def move(self, ticket: Ticket, now: float) -> None:
        """Give a running ticket another engine at once, because its own is suspended."""
        if self._pool and ticket.state is TicketState.RUNNING:
            self.answers.lost(ticket)
            self._pool.move(ticket, now)

    def running_on(self, engine: int) -> int:
        """Return the number of running tickets on an engine."""
        return sum(ticket.engine == engine for ticket in self._running)

    def record(self, sample: EngineSample, now: float) -> list[Ticket]:
        """Process an engine's figures of its steps; return the tickets that stop waiting."""
        self.answers.record(sample.steps, sample.engine)
        self._predictor.record(sample, now)
        return self.pump(now)

    def pump(self, now: float) -> list[Ticket]:
        """Start the tickets that may start and refuse those that would be late; return both kinds.

        The state of each ticket shows its kind.
        """
        if not (self._full or self._line.length or self._displaced):
            return []
        self._rate.advance(now, full=True)
        return self._pump(now)

    def _pump(self, now: float) -> list[Ticket]:
        over, self._displaced = self._displaced, []
        if self._suspended is not None:
            return over
        line = self._line
        line.age(now)
        while line.length:
            ticket = line.head()
            if now > ticket.expires and not (ticket.best_effort and not ticket.relegated) and not self._may_be_late(ticket, now):
                self._reject_waiting(ticket, Refusal.WAITED_TOO_LONG, now)
                over.append(ticket)
                continue
            constraint = self._holds(ticket, now)
            if constraint is not None:
                self.log.held[constraint] += 1
                break
            if self._pool:
                ticket = self._pool.fitting(ticket, line.behind(ticket, FEW), now)
            self._start(ticket, now)
            over.append(ticket)
        if self._full and not line.length:
            self._full = self._last is not None and self.policy.holds(self._last, now) is not None
        return over

    def _holds(self, ticket: Ticket, now: float) -> str | None:
        """Return the constraint against a start now, or None."""
        # Slots come free so often in several engines that they keep no room.
        ticket.room = NO_ROOM if self._pool else self._headroom.beside(ticket, self.policy.limit, self.answers, now)
        return self.policy.holds(ticket, now)

    def _start(self, ticket: Ticket, now: float) -> None:
        self._note(ticket, "started", now)
        self._line.remove(ticket, now)
        self._line.charge(ticket.tenant, ticket.cost)
        ticket.state = TicketState.RUNNING
        ticket.granted = now
        self._running.add(ticket)
        self.policy.started(ticket, now)
        waited = now > ticket.queued
        self._last, self._full = ticket, self.policy.holds(ticket, now) is not None
        if waited or self._full:
            self._rate.served(ticket.cost)

    # Refusals

    def _refusal_reason(self, ticket: Ticket, terms: Terms, wait: float | None, patience: float, now: float) -> Refusal | None:
        # Where others wait, a ticket waits too, even if it could start at once. Otherwise small
        # ones would pass and large ones would not.
        would_wait = self._line.length > 0 or self._holds(ticket, now) is not None
        if would_wait and self.max_waiting is not None and self._line.length >= self.max_waiting:
            return Refusal.QUEUE_FULL
        return terms.objection(ticket, wait if would_wait else None, patience, now)

    def _may_be_late(self, ticket: Ticket, now: float) -> bool:
        until = self._predictor.overdue(ticket, self.forecast.state(ticket.tenant, now), now)
        if until is None or until <= now:
            return False
        ticket.expires = until
        self._note(ticket, "may be late", now)
        return True

    def _reject_waiting(self, ticket: Ticket, reason: Refusal, now: float) -> Refused:
        """Refuse a ticket that has waited, and remove it from the queue."""
        ticket.refused = self._refuse(ticket, self.forecast.refused(reason, ticket, None, 0.0, now), now)
        self._line.remove(ticket, now)
        self.tenants.give_back(ticket, now)
        return ticket.refused

    def _refuse(self, ticket: Ticket, refused: Refused, now: float) -> Refused:
        ticket.state = TicketState.DONE
        self._note(ticket, "refused", now, refused.reason, refused.wait)
        return refused

    def _displace(self, ticket: Ticket, now: float) -> bool:
        """Make room in a full queue: refuse a ticket of a tenant with more waiting cost, if any."""
        victim = self._line.displaced_by(ticket)
        if victim is None:
            return False
        self._reject_waiting(victim, Refusal.DISPLACED, now)
        self._displaced.append(victim)
        return True

    # State and figures

    def set_tenants(self, table: TenantTable) -> None:
        """Replace the weights and limits of tenants. Usage that is already counted stays."""
        self.tenants.table = table
        # Running answers are followed if the policy or a tenant's limit uses their lengths.
        self.answers.follows = getattr(self._predictor, "uses_lengths", True) or self.tenants.limits_tokens

    def adopt(self, other: "AdmissionController", now: float) -> list[Ticket]:
        """Take over the limits of an unused controller; return the tickets that stop waiting."""
        adopt(self.policy, other.policy, now)
        self._predictor = predictor(self.policy, other.max_wait)
        self.max_waiting, self.max_wait = other.max_waiting, other.max_wait
        self.set_tenants(other.tenants.table)
        return self.pump(now)

    def tally(self) -> UsageDelta:
        """Return the usage since the last call, for other controllers of the same tenants."""
        return attrs.evolve(self.tenants.tally(), costs=self._line.tally())

    def served_elsewhere(self, tally: UsageDelta, now: float) -> None:
        """Count what other controllers have served in total.

        A tenant that was served much there queues behind others here, and its limits cover all
        controllers.
        """
        self._line.charge_elsewhere(tally.costs)
        self.tenants.served_elsewhere(tally, now)

    def explain(self, request_id: str) -> list[Decision]:
        """Return the decisions about a request, the oldest first; old ones are dropped."""
        return self.log.of(request_id)

    def statistics(self, now: float) -> AdmissionStatistics:
        counts: dict[str, Any] = {**self.log.counts(), **self.forecast.figures(), **self._predictor.figures().statistics()}
        counts |= {"policy": self.policy.name, "limit": self.policy.limit, "max_waiting": self.max_waiting}
        return AdmissionStatistics(running=len(self._running), waiting=self._line.length, **counts)

    def _note(self, ticket: Ticket, verdict: str, now: float, constraint: str | None = None, *predicted: float | None) -> None:
        figures = self._predictor.figures()
        self.log.add(ticket, verdict, now, len(self._running), self._line.length, figures, constraint, *predicted)
