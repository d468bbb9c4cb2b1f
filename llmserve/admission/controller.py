"""The one thing that the manager talks to: offer, leave, pump, statistics.

Rules held here, each by a property test:
1. Never more running than the policy allows, never one waiting while the policy would let it start.
2. A slot is handed over, not released and raced for: who leaves names the next, and a newcomer never overtakes.
3. A ticket leaves exactly once; leaving after a hand-over passes the slot on.
"""

from collections import Counter

from llmserve.admission.estimates import DrainRate
from llmserve.admission.policies import Policy
from llmserve.admission.queue import WaitingLine
from llmserve.admission.refusal import Refusal, Refused
from llmserve.admission.seam import AdmissionStatistics
from llmserve.admission.ticket import Ticket, TicketState

# A client told to come back in less than this only costs another refusal; one told more than 30 s has gone elsewhere.
RETRY_AFTER_BOUNDS = (0.1, 30.0)
# Before anything has left there is no rate to compute with.
RETRY_AFTER_UNKNOWN = 1.0


class AdmissionController:
    """Decides at once, and never waits.

    Args:
        policy: whether one more may start.
        max_waiting: the longest line; None is without bound.
        max_wait: a newcomer bound to wait longer than so many seconds is refused.
        tenant_limit: most of one tenant, running and waiting together; None is without bound.
    """

    def __init__(
        self, policy: Policy, *, max_waiting: int | None = None, max_wait: float | None = None, tenant_limit: int | None = None
    ) -> None:
        self.policy = policy
        self.max_waiting = max_waiting
        self.max_wait = max_wait
        self.tenant_limit = tenant_limit
        self._running: set[Ticket] = set()
        self._waiting: WaitingLine[Ticket] = WaitingLine()
        self._tenants: Counter[str] = Counter()
        self._drain = DrainRate()
        self._admitted = 0
        self._refused: Counter[str] = Counter()

    def __repr__(self) -> str:
        limit = self.policy.limit
        return f"<AdmissionController {len(self._running)}/{limit if limit is not None else 'inf'} running, {len(self._waiting)} waiting>"

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        """Take a new ticket in: afterwards it runs or waits, or the reason why not is returned and it is done."""
        if ticket.state is not TicketState.NEW:
            raise RuntimeError(f"a ticket is offered once; this one is {ticket.state.value}")
        if self.tenant_limit is not None and self._tenants[ticket.tenant] >= self.tenant_limit:
            return self._refuse(ticket, Refusal.TENANT_LIMIT, self._until_departures(1, now))
        if not self._waiting and self.policy.may_start(len(self._running)):
            self._tenants[ticket.tenant] += 1
            self._start(ticket, now)
            return None
        if self.max_waiting is not None and len(self._waiting) >= self.max_waiting:
            return self._refuse(ticket, Refusal.QUEUE_FULL, self._until_departures(len(self._waiting), now))
        wait = self.predicted_wait(ticket.priority, now)
        if self.max_wait is not None and wait is not None and wait > self.max_wait:
            return self._refuse(ticket, Refusal.WOULD_WAIT_TOO_LONG, wait - self.max_wait)
        self._tenants[ticket.tenant] += 1
        ticket.state = TicketState.WAITING
        self._waiting.push(ticket)
        return None

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Take a ticket out, wherever it is, and return those that were handed a slot by it. The second time does nothing."""
        state, ticket.state = ticket.state, TicketState.DONE
        if state is TicketState.RUNNING:
            self._running.remove(ticket)
            self._drain.departed(now, idle=not self._running and not self._waiting)
        elif state is TicketState.WAITING:
            self._waiting.remove(ticket)
        else:
            return []
        self._tenants[ticket.tenant] -= 1
        if not self._tenants[ticket.tenant]:
            del self._tenants[ticket.tenant]
        return self.pump(now)

    def give_up(self, ticket: Ticket, now: float) -> tuple[Refused, list[Ticket]]:
        """A waiting ticket's patience is over: count it as refused and say when to come back."""
        granted = self.leave(ticket, now)
        self._refused[Refusal.WAITED_TOO_LONG] += 1
        return Refused(Refusal.WAITED_TOO_LONG, self._until_departures(len(self._waiting) + 1, now)), granted

    def pump(self, now: float) -> list[Ticket]:
        """Hand out every slot that the policy allows; returns who got one."""
        granted = []
        while self._waiting and self.policy.may_start(len(self._running)):
            ticket = self._waiting.head()
            self._waiting.remove(ticket)
            self._start(ticket, now)
            granted.append(ticket)
        return granted

    def predicted_wait(self, priority: int, now: float) -> float | None:
        """Seconds until a newcomer would start, from those ahead and the rate at which work leaves; None if unknown."""
        rate = self._drain.rate(now)
        if rate is None:
            return None
        return (self._waiting.ahead_of(priority) + 1) / rate

    def statistics(self, now: float) -> AdmissionStatistics:
        return AdmissionStatistics(
            running=len(self._running),
            waiting=len(self._waiting),
            limit=self.policy.limit,
            max_waiting=self.max_waiting,
            admitted=self._admitted,
            refused=dict(self._refused),
            drain_rate=self._drain.rate(now),
        )

    def _start(self, ticket: Ticket, now: float) -> None:
        ticket.state = TicketState.RUNNING
        ticket.granted = now
        self._running.add(ticket)
        self._admitted += 1

    def _refuse(self, ticket: Ticket, reason: Refusal, retry_after: float) -> Refused:
        ticket.state = TicketState.DONE
        self._refused[reason] += 1
        low, high = RETRY_AFTER_BOUNDS
        return Refused(reason, min(max(retry_after, low), high))

    def _until_departures(self, count: int, now: float) -> float:
        rate = self._drain.rate(now)
        return count / rate if rate else RETRY_AFTER_UNKNOWN
