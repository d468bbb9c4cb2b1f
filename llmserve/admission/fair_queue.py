"""Those who wait: by priority, between tenants by what they have had, within a tenant by arrival.

Between tenants it is the Virtual Token Counter of Sheng et al. (OSDI 2024): whoever has been served least, in tokens by
weight, is next; who comes back from a pause starts level with those who kept asking, so that nobody saves up.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping

import attrs

from llmserve.admission.ticket import Ticket

# Counters of tenants that do not wait, kept before they are looked through.
FORGET = 64


@attrs.define
class _Queue:
    """One tenant's tickets of one band, in the order of arrival; leaving from the middle is O(1)."""

    tickets: dict[Ticket, None] = attrs.field(factory=dict)
    cost: float = 0.0


class FairQueue:
    """Every operation takes O(tenants that wait) at most.

    `weight` gives a tenant's share relative to others'. `aging` is how long a ticket waits before it goes up to the next
    better band where somebody waits, so that no band starves another for good.
    """

    def __init__(self, *, weight: Callable[[str], float] = lambda _: 1.0, aging: float = 5.0) -> None:
        self.weight = weight
        self.aging = aging
        self._bands: dict[int, dict[str, _Queue]] = {}
        # All tickets of a band by when they came into it: only the oldest can be due for the next better one.
        self._ages: dict[int, dict[Ticket, float]] = {}
        self._served: dict[str, float] = {}
        # Where the last one who was served stood: the level of those who come new.
        self._level = 0.0
        self._waiting: dict[str, int] = {}
        self._length = 0
        self.cost = 0.0
        # How far, in cost by weight, one who comes back may stand below the others: what came in a lump is not held against it.
        self.credit = 0.0
        # What was charged since it was last told, once somebody has asked for it.
        self._tally: dict[str, float] | None = None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for queues in self._bands.values() for queue in queues.values() for ticket in queue.tickets)

    def push(self, ticket: Ticket, now: float) -> None:
        tenant = ticket.tenant
        if not self._waiting.get(tenant):
            self._served[tenant] = self._standing(tenant)
        ticket.queued = now
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1
        self._length += 1
        self._enter(ticket, now)

    def remove(self, ticket: Ticket, now: float) -> None:
        self._exit(ticket)
        self._length -= 1
        tenant = ticket.tenant
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]

    def head(self) -> Ticket:
        """The next to go; the line must not be empty."""
        queues = self._bands[min(self._bands)]
        tenant = next(iter(queues)) if len(queues) == 1 else min(queues, key=self._served.__getitem__)
        return next(iter(queues[tenant].tickets))

    def charge(self, tenant: str, cost: float) -> None:
        """Count service, or with a negative cost the part of it that was not needed after all."""
        served = self._served.get(tenant, self._level)
        self._served[tenant] = served + cost / self.weight(tenant)
        if self._tally is not None:
            self._tally[tenant] = self._tally.get(tenant, 0.0) + cost
        if cost > 0:
            # Where nobody else waits, whoever is served keeps nobody from anything, and all are level again.
            self._level = max(self._level, served if self._waiting else self._served[tenant])
        self._forget()

    def tally(self) -> dict[str, float]:
        """The cost charged to each tenant since this was last asked; nothing the first time, which begins the count."""
        told, self._tally = self._tally or {}, {}
        return told

    def charge_elsewhere(self, costs: Mapping[str, float]) -> None:
        """Count what tenants have been served in other lines, each as far as others wait here: what keeps nobody waiting is no debt."""
        for tenant, cost in costs.items():
            if any(name != tenant for name in self._waiting):
                self._served[tenant] = self._served.get(tenant, self._level) + cost / self.weight(tenant)
        self._forget()

    def _forget(self) -> None:
        if len(self._served) > 2 * (len(self._waiting) + FORGET):
            # Who stands no higher than the level would be lifted to it anyway: only debts need to be remembered.
            self._served = {name: value for name, value in self._served.items() if name in self._waiting or value > self._level}

    def age(self, now: float) -> None:
        """Move up whoever has waited for long in a band."""
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
        """The cost that is served before a newcomer of this tenant and priority: all of it, or its tenant's own as often as
        others have their turns meanwhile, whichever is less."""
        total = own = 0.0
        weights = {tenant: self.weight(tenant)}
        for band, queues in self._bands.items():
            if band <= priority:
                for name, queue in queues.items():
                    total += queue.cost
                    weights[name] = self.weight(name)
                    if name == tenant:
                        own += queue.cost
        # As long as it stands below the others, it is served alone.
        behind = self._floor(tenant) - (self._served[tenant] if tenant in self._waiting else self._standing(tenant))
        first = min(own, max(behind, 0.0) * weights[tenant])
        return min(total, first + (own - first) * sum(weights.values()) / weights[tenant])

    def waiting_cost(self, tenant: str) -> float:
        """What this tenant has waiting, for its weight."""
        return sum(queues[tenant].cost for queues in self._bands.values() if tenant in queues) / self.weight(tenant)

    def newest_of_largest(self) -> Ticket:
        """The last to come of the tenant that has most waiting for its weight; the line must not be empty."""
        largest = max(self._waiting, key=self.waiting_cost)
        band = max(band for band, queues in self._bands.items() if largest in queues)
        return next(reversed(self._bands[band][largest].tickets))

    def _floor(self, but: str | None = None) -> float:
        return min((self._served[tenant] for tenant in self._waiting if tenant != but), default=self._level)

    def _standing(self, tenant: str) -> float:
        """Where one stands who comes back: not far below those who kept asking."""
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
            # What rounding has left.
            self.cost = 0.0
