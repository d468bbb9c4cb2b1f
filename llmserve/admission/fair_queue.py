"""The queue of waiting tickets: by priority, fair between tenants, and by arrival within a tenant.

Fairness between tenants is the Virtual Token Counter of Sheng et al. (OSDI 2024): the next tenant
is the one that was served least, in tokens divided by weight. A tenant that returns after a pause
starts level with those that kept asking, so no tenant saves up credit.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping

import attrs

from llmserve.admission.ticket import Ticket

# Number of counters of tenants that do not wait before the counters are cleaned up.
FORGET = 64


@attrs.define
class _Queue:
    """One tenant's tickets of one band in order of arrival; removal from the middle is O(1)."""

    tickets: dict[Ticket, None] = attrs.field(factory=dict)
    cost: float = 0.0


class FairQueue:
    """A queue whose operations take O(waiting tenants) at most.

    `weight` returns a tenant's share relative to other tenants. After `aging` seconds a ticket
    moves up to the next better band that has tickets, so that no band starves another. `length` is
    the number of tickets: the controller needs it several times for each request and step, and a
    `__len__` would take 4 % of a step.
    """

    def __init__(self, *, weight: Callable[[str], float] = lambda _: 1.0, aging: float = 5.0) -> None:
        self.weight = weight
        self.aging = aging
        self._bands: dict[int, dict[str, _Queue]] = {}
        # The tickets of each band by the time at which they entered it: only the oldest can be due
        # for the next better band.
        self._ages: dict[int, dict[Ticket, float]] = {}
        self._served: dict[str, float] = {}
        # The counter of the ticket served last; new tenants start at this level.
        self._level = 0.0
        self._waiting: dict[str, int] = {}
        self.length = 0
        self.cost = 0.0
        # How far below the others a returning tenant may start, in cost divided by weight. It
        # allows for requests that come in bursts.
        self.credit = 0.0
        # Cost charged since the last tally; None until the first tally.
        self._tally: dict[str, float] | None = None

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for queues in self._bands.values() for queue in queues.values() for ticket in queue.tickets)

    def push(self, ticket: Ticket, now: float) -> None:
        tenant = ticket.tenant
        if not self._waiting.get(tenant):
            self._served[tenant] = self._standing(tenant)
        ticket.queued = now
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1
        self.length += 1
        self._enter(ticket, now)

    def remove(self, ticket: Ticket, now: float) -> None:
        self._exit(ticket)
        self.length -= 1
        tenant = ticket.tenant
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]

    def head(self) -> Ticket:
        """The next ticket to start. The queue must not be empty."""
        queues = self._bands[min(self._bands)]
        tenant = next(iter(queues)) if len(queues) == 1 else min(queues, key=self._served.__getitem__)
        return next(iter(queues[tenant].tickets))

    def behind(self, ticket: Ticket, count: int) -> Iterator[Ticket]:
        """Iterate over at most `count` tickets of the tenant and band that wait behind its first ticket."""
        return itertools.islice(self._bands[ticket.band][ticket.tenant].tickets, 1, 1 + count)

    def charge(self, tenant: str, cost: float) -> None:
        """Count the cost of service. A negative cost takes back an overestimate."""
        served = self._served.get(tenant, self._level)
        self._served[tenant] = served + cost / self.weight(tenant)
        if self._tally is not None:
            self._tally[tenant] = self._tally.get(tenant, 0.0) + cost
        if cost > 0:
            # If no ticket waits, this service delays no other tenant, and all tenants are level
            # again.
            self._level = max(self._level, served if self._waiting else self._served[tenant])
        self._forget()

    def tally(self) -> dict[str, float]:
        """Return each tenant's cost since the last call. The first call starts the count."""
        told, self._tally = self._tally or {}, {}
        return told

    def charge_elsewhere(self, costs: Mapping[str, float]) -> None:
        """Count service in other queues, for each tenant only while other tenants wait here.

        Service that delays no tenant is no debt.
        """
        for tenant, cost in costs.items():
            if any(name != tenant for name in self._waiting):
                self._served[tenant] = self._served.get(tenant, self._level) + cost / self.weight(tenant)
        self._forget()

    def _forget(self) -> None:
        if len(self._served) > 2 * (len(self._waiting) + FORGET):
            # A tenant at or below the level would be lifted to it anyway, so only debts need to be
            # kept.
            self._served = {name: value for name, value in self._served.items() if name in self._waiting or value > self._level}

    def age(self, now: float) -> None:
        """Move up the tickets that have waited longest in their band."""
        if len(self._bands) < 2:
            return
        bands = sorted(self._bands)
        for better, band in itertools.pairwise(bands):
            ages = self._ages[band]
            while ages:
                ticket, since = next(iter(ages.items()))
                if now - since < self.aging:
                    break
                self._exit(ticket)
                ticket.band = better
                self._enter(ticket, now)

    def ahead_of(self, tenant: str, priority: int) -> float:
        """Return the cost that is served before a newcomer of this tenant and priority.

        This is the total cost, or the tenant's own cost with the turns of the others in between,
        whichever is less.
        """
        total = own = 0.0
        weights = {tenant: self.weight(tenant)}
        for band, queues in self._bands.items():
            if band <= priority:
                for name, queue in queues.items():
                    total += queue.cost
                    weights[name] = self.weight(name)
                    if name == tenant:
                        own += queue.cost
        # While the tenant is below the others, only its tickets are served.
        behind = self._floor(tenant) - (self._served[tenant] if tenant in self._waiting else self._standing(tenant))
        first = min(own, max(behind, 0.0) * weights[tenant])
        return min(total, first + (own - first) * sum(weights.values()) / weights[tenant])

    def waiting_cost(self, tenant: str) -> float:
        """Return the tenant's waiting cost, divided by its weight."""
        return sum(queues[tenant].cost for queues in self._bands.values() if tenant in queues) / self.weight(tenant)

    def displaced_by(self, ticket: Ticket) -> Ticket | None:
        """Return the newest ticket of the tenant with most waiting cost.

        Return None if the tenant of this `ticket` would have as much, or no ticket waits.
        """
        if self._waiting.keys() <= {ticket.tenant}:
            # No other tenant's tickets wait.
            return None
        largest = max(self._waiting, key=self.waiting_cost)
        if self.waiting_cost(ticket.tenant) + ticket.cost / self.weight(ticket.tenant) >= self.waiting_cost(largest):
            return None
        band = max(band for band, queues in self._bands.items() if largest in queues)
        return next(reversed(self._bands[band][largest].tickets))

    def _floor(self, but: str | None = None) -> float:
        return min((self._served[tenant] for tenant in self._waiting if tenant != but), default=self._level)

    def _standing(self, tenant: str) -> float:
        """Return the counter of a returning tenant: not far below those that kept asking."""
        return max(self._served.get(tenant, 0.0), self._floor() - self.credit)

    def _enter(self, ticket: Ticket, now: float) -> None:
        queue = self._bands.setdefault(ticket.band, {}).setdefault(ticket.tenant, _Queue())
        queue.tickets[ticket] = None
        queue.cost += ticket.cost
        self._ages.setdefault(ticket.band, {})[ticket] = now
        self.cost += ticket.cost

    def _exit(self, ticket: Ticket) -> None:
        band = self._bands[ticket.band]
        queue = band[ticket.tenant]
        del queue.tickets[ticket]
        del self._ages[ticket.band][ticket]
        queue.cost -= ticket.cost
        self.cost -= ticket.cost
        if not queue.tickets:
            del band[ticket.tenant]
            if not band:
                del self._bands[ticket.band]
                del self._ages[ticket.band]
        if not self._bands:
            # Remove the rounding error.
            self.cost = 0.0
