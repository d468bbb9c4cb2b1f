"""The one thing that the manager talks to: offer, leave, pump, record, statistics.

Rules held here, each by a property test:
1. Never one waiting while the policy would let it start; never one started that the policy holds.
2. A slot is handed over, not released and raced for: who leaves names the next, and a newcomer never overtakes its own tenant.
3. A ticket leaves exactly once; leaving after a hand-over passes the slot on.
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

# Worse than any priority that a request can ask for: those that wait for what is left over.
BEST_EFFORT = 1 << 32
# Seconds of its share that a tenant may have left unused and take later: requests come in lumps, and shares are of what comes over a while.
CREDIT = 4.0


class AdmissionController:
    """Decides at once, and never waits.

    Args:
        policy: whether one more may start.
        max_waiting: the longest line; None is without bound.
        max_wait: how long one that waits for what is left over may wait.
        tenants: weights and limits; None sets none.
        aging: seconds after which a waiting ticket goes up a band.
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
        # Refused after all, in favour of somebody else's; told of at the next occasion.
        self._displaced: list[Ticket] = []
        self._rate = ServiceRate()
        self._retry = RetryAfter()
        self._answers = Lengths()
        self._admitted = 0
        self._suspended: float | None = None
        # The last one to start, and whether another one like it would have to wait.
        self._last: Ticket | None = None
        self._full = False
        self._refused: Counter[str] = Counter()

    def __repr__(self) -> str:
        limit = self.policy.limit
        return f"<AdmissionController {len(self._running)}/{limit if limit is not None else 'inf'} running, {len(self._line)} waiting>"

    # One ticket

    def screen(self, ticket: Ticket, now: float) -> Refused | None:
        """Whether it would be refused now whatever its length: asked before its prompt is tokenised, which costs something."""
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
        """Take a new ticket in: afterwards it runs or waits, or the reason why not is returned and it is done."""
        if ticket.state is not TicketState.NEW:
            raise RuntimeError(f"a ticket is offered once; this one is {ticket.state.value}")
        self._rate.advance(now, full=self._full or bool(self._line))
        ticket.cost = self.policy.weigh(ticket)
        if not ticket.expected_tokens:
            # A policy that only counts requests makes no estimate, and tenants' tokens need one.
            ticket.expected_tokens = self._answers.mean(most=ticket.max_tokens)
        # The line as it is without this one: a long prompt would make an overload of itself, and be refused for that.
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
        # Nobody else's lot has changed: those before it were held when something last did, and still are.
        constraint = "line" if self._line.head() is not ticket else self.policy.holds(ticket, now)
        if constraint is None:
            self._start(ticket, now)
        else:
            self._note(ticket, "relegated" if ticket.relegated else "waits", now, constraint, wait, patience)
        return None

    def first_token(self, ticket: Ticket, now: float) -> list[Ticket]:
        """A running one has its first token; returns those whose wait is over by it."""
        self.policy.first_token(ticket, now)
        return self.pump(now)

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Take a ticket out, wherever it is, and return those whose wait is over by it. The second time does nothing."""
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
        """A waiting ticket's patience is over: it is refused, and told when to come back; or (None) it waits on, late or for what is left
        over, until its new `expires`."""
        if now < ticket.expires or self._suspended is not None:
            # It was given more time since the clock was set for it.
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
        """The engine is gone: until it is back nobody starts, and nobody's patience ends."""
        if self._suspended is None:
            self._rate.advance(now, full=self._full or bool(self._line))
            self._suspended = now

    def resume(self, now: float) -> list[Ticket]:
        """It is back: patience goes on where it stood, and what was not served meanwhile says nothing of how fast the engine is."""
        if self._suspended is None:
            return []
        for ticket in self._line:
            ticket.expires += now - self._suspended
        self._suspended = None
        self._rate.skip(now)
        return self._pump(now)

    def record(self, sample: EngineSample, now: float) -> list[Ticket]:
        """What the engine tells of its steps; returns those whose wait is over by it."""
        self.policy.record(sample, now)
        return self.pump(now)

    def pump(self, now: float) -> list[Ticket]:
        """Let start whoever may, give up who would come too late, and return both: see their state."""
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
        # Where others wait it would, too, also one that is small enough to start at once: or small ones would be taken and large ones not.
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
        """Refuse one that has waited, and take it out of the line."""
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
        """Where the line is full: give the place of the last one of whoever has most in it to one who has less."""
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

    # What it knows

    def predicted_wait(self, tenant: str, priority: int, now: float) -> float | None:
        """Seconds until a newcomer would start, from the cost ahead of it and the rate at which cost is served; None if unknown."""
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
        """From now on these weights and limits hold; what tenants have taken is kept."""
        self.tenants.table = table

    def tally(self) -> UsageDelta:
        """What tenants were served here since this was last asked, for other controllers that serve the same ones."""
        return attrs.evolve(self.tenants.tally(), costs=self._line.tally())

    def served_elsewhere(self, tally: UsageDelta, now: float) -> None:
        """What those have served, all together: whoever has had much there is behind others here, and its limits are of all."""
        self._line.charge_elsewhere(tally.costs)
        self.tenants.served_elsewhere(tally, now)

    def explain(self, request_id: str) -> list[Decision]:
        """What was decided about a request and why, the oldest first; nothing if that is too long ago."""
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
