"""AdmissionController decides which tickets start, wait or are refused.

It keeps three rules, each checked by a property test:
1. No ticket waits while the policy would let it start, and no ticket starts that the policy holds.
2. A slot is handed over, not released and raced for: the ticket that leaves names the next one.
   A newcomer never overtakes tickets of its own tenant.
3. A ticket leaves exactly once. If it leaves after a hand-over, the slot is passed on.
"""

from collections import Counter

import attrs

from llmserve.admission.decisions import Decision, DecisionLog
from llmserve.admission.fair_queue import FairQueue
from llmserve.admission.length_estimates import Lengths
from llmserve.admission.policies import EngineSample, Policy, QueueState
from llmserve.admission.protocol import AdmissionStatistics
from llmserve.admission.refusals import Refusal, Refused
from llmserve.admission.retry_after import RetryAfter
from llmserve.admission.service_rate import ServiceRate
from llmserve.admission.tenants import Tenants
from llmserve.admission.ticket import Ticket, TicketState
from llmserve.admission.usage import UsageDelta
from llmserve.config import TenantTable

# A band worse than any priority that a request can have: its tickets wait for leftover capacity.
BEST_EFFORT = 1 << 32
# Seconds of its share that a tenant may leave unused and use later. Requests come in bursts, and
# shares apply to longer periods.
CREDIT = 4.0


class AdmissionController:
    """Decides about every ticket immediately, and never waits.

    Args:
        policy: Decides whether one more ticket may start.
        max_waiting: Maximum length of the queue; None sets no limit.
        max_wait: Longest time in seconds that a demoted ticket may wait for leftover capacity.
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
        self.max_waiting = max_waiting
        self.max_wait = max_wait
        self.tenants = tenants or Tenants()
        self.log = DecisionLog()
        self._running: set[Ticket] = set()
        self._line = FairQueue(weight=self.tenants.weight, aging=aging)
        # Waiting tickets that were refused in favour of another tenant's; returned by the next
        # pump.
        self._displaced: list[Ticket] = []
        self._rate = ServiceRate()
        self._retry = RetryAfter()
        self._answers = Lengths()
        self._admitted = 0
        self._suspended: float | None = None
        # The last ticket to start, and whether a similar one would have to wait.
        self._last: Ticket | None = None
        self._full = False
        self._refused: Counter[str] = Counter()

    def __repr__(self) -> str:
        limit = self.policy.limit
        return f"<AdmissionController {len(self._running)}/{limit if limit is not None else 'inf'} running, {len(self._line)} waiting>"

    # One ticket

    def screen(self, ticket: Ticket, now: float) -> Refused | None:
        """Refuse a ticket that would be refused at any prompt length, before its tokenisation."""
        if not self._line or ticket.best_effort:
            return None
        self._rate.advance(now, full=True)
        wait = self.predicted_wait(ticket.tenant, ticket.priority, now)
        if wait is None:
            return None
        patience = self.policy.patience(ticket, self._line_state(ticket.tenant, now), now)
        if wait <= patience:
            return None
        self._rate.offered(ticket.tenant, self._rate.mean_cost, now, self.tenants.weight(ticket.tenant))
        return self._refuse(ticket, self._refusal(Refusal.WOULD_WAIT_TOO_LONG, ticket, wait, patience, now), now)

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        """Accept a new ticket, which then runs or waits; or refuse it and return the reason."""
        if ticket.state is not TicketState.NEW:
            raise RuntimeError(f"a ticket is offered once; this one is {ticket.state.value}")
        self._rate.advance(now, full=self._full or bool(self._line))
        ticket.cost = self.policy.weigh(ticket)
        if not ticket.expected_tokens:
            # A policy that only counts requests makes no estimate, but limits on tenants' tokens
            # need one.
            ticket.expected_tokens = self._answers.mean(most=ticket.max_tokens)
        # The state of the queue without this ticket. Otherwise a long prompt would look like an
        # overload, and be refused for it.
        line = self._line_state(ticket.tenant, now)
        self._rate.offered(ticket.tenant, ticket.cost, now, self.tenants.weight(ticket.tenant))
        refused = self.tenants.objection(ticket, self._interval(), now)
        if refused is not None:
            return self._refuse(ticket, refused, now)
        ticket.band = ticket.priority
        wait = self.predicted_wait(ticket.tenant, ticket.priority, now)
        patience = self.policy.patience(ticket, line, now)
        reason = self._refusal_reason(ticket, wait, patience, now)
        if reason is Refusal.QUEUE_FULL and self._displace(ticket, now):
            reason = None
        if reason is not None:
            if not ticket.best_effort or reason in (Refusal.QUEUE_FULL, Refusal.DEADLINE_TOO_SHORT):
                return self._refuse(ticket, self._refusal(reason, ticket, wait, patience, now), now)
            self._demote(ticket, now)
        else:
            ticket.expires = self.policy.expires(ticket, line, now)
        self.tenants.take(ticket, now)
        ticket.state = TicketState.WAITING
        self._line.push(ticket, now)
        # Nothing changed for the other tickets: the policy still holds those at the head.
        constraint = "line" if self._line.head() is not ticket else self.policy.holds(ticket, now)
        if constraint is None:
            self._start(ticket, now)
        else:
            self._note(ticket, "relegated" if ticket.relegated else "waits", now, constraint, wait, patience)
        return None

    def first_token(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Note a running ticket's first token; return the tickets that stop waiting."""
        self.policy.first_token(ticket, now)
        return self.pump(now)

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Remove a ticket, running or waiting; return the tickets that stop waiting. Idempotent."""
        self._rate.advance(now, full=self._full or bool(self._line))
        state, ticket.state = ticket.state, TicketState.DONE
        if state is TicketState.RUNNING:
            self._running.remove(ticket)
            actual = self.policy.left(ticket, now)
            if ticket.complete:
                self._answers.learn(ticket.generated)
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
            self._demote(ticket, now)
            self._line.push(ticket, now)
            self._note(ticket, "relegated", now, constraint=Refusal.WAITED_TOO_LONG)
            return None, self._pump(now)
        if self._may_be_late(ticket, now):
            return None, self._pump(now)
        refused = self._reject_waiting(ticket, Refusal.WAITED_TOO_LONG, now)
        self._rate.advance(now, full=True)
        return refused, self._pump(now)

    # All tickets

    def suspend(self, now: float) -> None:
        """Stop starting tickets until the engine is back. Patience does not run out until then."""
        if self._suspended is None:
            self._rate.advance(now, full=self._full or bool(self._line))
            self._suspended = now

    def resume(self, now: float) -> list[Ticket]:
        """Start tickets again: the engine is back.

        Patience continues where it stopped. The pause does not count in the service rate.
        """
        if self._suspended is None:
            return []
        for ticket in self._line:
            ticket.expires += now - self._suspended
        self._suspended = None
        self._rate.skip(now)
        return self._pump(now)

    def record(self, sample: EngineSample, now: float) -> list[Ticket]:
        """Process the engine's figures of its steps; return the tickets that stop waiting."""
        self.policy.record(sample, now)
        return self.pump(now)

    def pump(self, now: float) -> list[Ticket]:
        """Start the tickets that may start and refuse those that would be late; return both kinds.

        The state of each ticket shows its kind.
        """
        if not self._line and not self._full and not self._displaced:
            return []
        self._rate.advance(now, full=True)
        return self._pump(now)

    def _pump(self, now: float) -> list[Ticket]:
        over, self._displaced = self._displaced, []
        if self._suspended is not None:
            return over
        line = self._line
        if line:
            line.age(now)
        while line:
            ticket = line.head()
            if now > ticket.expires and not (ticket.best_effort and not ticket.relegated) and not self._may_be_late(ticket, now):
                self._reject_waiting(ticket, Refusal.WAITED_TOO_LONG, now)
                over.append(ticket)
                continue
            constraint = self.policy.holds(ticket, now)
            if constraint is not None:
                self.log.held[constraint] += 1
                break
            self._start(ticket, now)
            over.append(ticket)
        if not line and self._full:
            self._full = self._last is not None and self.policy.holds(self._last, now) is not None
        return over

    def _start(self, ticket: Ticket, now: float) -> None:
        self._note(ticket, "started", now)
        self._line.remove(ticket, now)
        self._line.charge(ticket.tenant, ticket.cost)
        ticket.state = TicketState.RUNNING
        ticket.granted = now
        self._running.add(ticket)
        self._admitted += 1
        self.policy.started(ticket, now)
        waited = now > ticket.queued
        self._last, self._full = ticket, self.policy.holds(ticket, now) is not None
        if waited or self._full:
            self._rate.served(ticket.cost)

    # Refusals

    def _refusal_reason(self, ticket: Ticket, wait: float | None, patience: float, now: float) -> Refusal | None:
        # Where others wait, a ticket waits too, even if it could start at once. Otherwise small
        # ones would pass and large ones would not.
        would_wait = bool(self._line) or self.policy.holds(ticket, now) is not None
        if would_wait and self.max_waiting is not None and len(self._line) >= self.max_waiting:
            return Refusal.QUEUE_FULL
        reason = self.policy.impossible(ticket, wait or 0.0 if would_wait else 0.0, now)
        if reason is not None:
            return reason
        return Refusal.WOULD_WAIT_TOO_LONG if would_wait and wait is not None and wait > patience else None

    def _refusal(self, reason: Refusal, ticket: Ticket, wait: float | None, patience: float, now: float) -> Refused:
        over = (wait or 0.0) - patience
        return Refused(reason, self._retry.next(now, self._interval(), over, ticket.request_id), wait)

    def _may_be_late(self, ticket: Ticket, now: float) -> bool:
        until = self.policy.grace(ticket, self._line_state(ticket.tenant, now), now)
        if until is None or until <= now:
            return False
        ticket.expires = until
        self._note(ticket, "may be late", now)
        return True

    def _reject_waiting(self, ticket: Ticket, reason: Refusal, now: float) -> Refused:
        """Refuse a ticket that has waited, and remove it from the queue."""
        if reason is Refusal.WAITED_TOO_LONG:
            self.policy.on_timeout(ticket)
        ticket.refused = self._refuse(ticket, self._refusal(reason, ticket, None, 0.0, now), now)
        self._line.remove(ticket, now)
        self.tenants.give_back(ticket, now)
        return ticket.refused

    def _refuse(self, ticket: Ticket, refused: Refused, now: float) -> Refused:
        ticket.state = TicketState.DONE
        self._refused[refused.reason] += 1
        self._note(ticket, "refused", now, constraint=refused.reason, wait=refused.wait)
        return refused

    def _displace(self, ticket: Ticket, now: float) -> bool:
        """Make room in a full queue: refuse the newest ticket of the tenant with most waiting cost.

        Return False if this ticket's tenant would have as much.
        """
        if not self._line:
            return False
        victim = self._line.newest_of_largest()
        mine = self._line.waiting_cost(ticket.tenant) + ticket.cost / self.tenants.weight(ticket.tenant)
        if mine >= self._line.waiting_cost(victim.tenant):
            return False
        self._reject_waiting(victim, Refusal.DISPLACED, now)
        self._displaced.append(victim)
        return True

    def _demote(self, ticket: Ticket, now: float) -> None:
        ticket.relegated, ticket.band = True, BEST_EFFORT
        ticket.expires = now + self.max_wait

    # State and figures

    def predicted_wait(self, tenant: str, priority: int, now: float) -> float | None:
        """Seconds until a newcomer would start; None if unknown.

        The result is the cost ahead of it divided by the service rate.
        """
        rate = self._rate.per_second
        if rate is None:
            return None
        return (self._line.ahead_of(tenant, priority) + self._rate.mean_cost) / rate

    def _interval(self) -> float:
        rate = self._rate.per_second
        return self._rate.mean_cost / rate if rate else 0.0

    def _line_state(self, tenant: str, now: float) -> QueueState:
        rate = self._rate
        pace = 1 / rate.per_second if rate.per_second else 0.0
        pressure = own = rate.pressure
        if rate.backlog and rate.per_second:
            weight = self.tenants.weight(tenant)
            weights = rate.demanding(tenant, weight, now)
            self._line.credit = CREDIT * rate.per_second / weights
            own = rate.pressure_of(tenant, weight / weights, now)
        return QueueState(rate.backlog, pace * rate.mean_cost, pace, pressure, own)

    def set_tenants(self, table: TenantTable) -> None:
        """Replace the weights and limits of tenants. Usage that is already counted stays."""
        self.tenants.table = table

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
        interval = self._interval()
        return AdmissionStatistics(
            policy=self.policy.name,
            counting=self.policy.counting,
            running=len(self._running),
            waiting=len(self._line),
            limit=self.policy.limit,
            max_waiting=self.max_waiting,
            admitted=self._admitted,
            refused=dict(self._refused),
            held=dict(self.log.held),
            drain_rate=1 / interval if interval else None,
            predicted_wait=self.predicted_wait("", 0, now),
        )

    def _note(
        self,
        ticket: Ticket,
        verdict: str,
        now: float,
        constraint: str | None = None,
        wait: float | None = None,
        patience: float | None = None,
    ) -> None:
        self.log.add(
            Decision(
                at=now,
                request_id=ticket.request_id,
                tenant=ticket.tenant,
                priority=ticket.priority,
                prompt_tokens=ticket.prompt_tokens,
                expected_tokens=ticket.expected_tokens,
                verdict=verdict,
                constraint=constraint,
                running=len(self._running),
                waiting=len(self._line),
                wait=wait,
                patience=patience,
                margin=self.policy.margin,
                step_seconds=self.policy.step_seconds,
            )
        )
