"""Measures the service rate of the queue, and compares the demand with it."""

import math


class ServiceRate:
    """Cost per second that leaves the queue, and the demand relative to it.

    The rate counts only time in which the engine was full or tickets waited. At other times it
    would show the demand and not the capacity. `pressure` is the demand relative to the rate over
    some seconds. `backlog` sums up the excess demand, so it distinguishes an overload, however
    slight, from a burst of requests (Page's cumulative sum, 1954).
    """

    # Long enough to average over the bursts in which slots become free, short enough to follow a
    # change within a few TTFTs.
    SECONDS = 1.5
    # Up to this count old tickets do not fade. Otherwise the rate of a slow engine would be that of
    # its last request.
    MIN_COUNT = 16
    # Demand arrives more evenly than slots become free, and it is averaged over several answers.
    DEMAND_SECONDS = 4.0
    # An engine with room proves that an overload is over, so recent demand fades fast.
    ROOM_SECONDS = 1.0
    # Maximum backlog in seconds. Beyond it an overload is no more certain, and must be forgotten
    # soon after its end.
    LONGEST = 6.0

    # Maximum number of tenants; the one that asked longest ago is forgotten first.
    TENANTS = 1024

    def __init__(self) -> None:
        self._cost = self._seconds = self._count = 0.0
        self._offered = 0.0
        # Seconds to serve the rest of the demand if no request were refused.
        self.backlog = 0.0
        # For each tenant, in order of its last request: its demand, the time of that value, and its
        # weight; and the sum of the weights. A caller may use a new tenant for every request, so
        # the cost of an operation must not grow with the number of tenants.
        self._tenants: dict[str, tuple[float, float, float]] = {}
        self._weights = 0.0
        self._since: float | None = None

    def advance(self, now: float, *, full: bool) -> None:
        """Account for the time until now. Call it before any change.

        `full` says whether the engine was full or tickets waited in that time.
        """
        if self._since is not None and now > self._since:
            passed = now - self._since
            self._offered *= math.exp(-passed / (self.DEMAND_SECONDS if full else self.ROOM_SECONDS))
            self.backlog = max(0.0, self.backlog - passed) if full else self.backlog * math.exp(-2 * passed / self.ROOM_SECONDS)
            if full:
                if self._count > self.MIN_COUNT:
                    fade = max(math.exp(-passed / self.SECONDS), self.MIN_COUNT / self._count)
                    self._cost *= fade
                    self._seconds *= fade
                    self._count *= fade
                self._seconds += passed
        self._since = now

    def skip(self, now: float) -> None:
        """Leave out the time until now."""
        self._since = now

    def offered(self, tenant: str, cost: float, now: float, weight: float = 1.0) -> None:
        """Count demand, whether or not it is served."""
        self._offered += cost
        if self.per_second:
            self.backlog = min(self.LONGEST, self.backlog + cost / self.per_second)
        demand = self._demand(tenant, now) + cost
        self._drop(tenant)
        self._tenants[tenant] = demand, now, weight
        self._weights += weight
        self._forget(now)

    def served(self, cost: float) -> None:
        """Count a ticket that starts and fills the engine, or that had to wait."""
        self._cost += cost
        self._count += 1

    @property
    def per_second(self) -> float | None:
        """Cost per second; None until there are enough observations."""
        if self._count < 2 or self._seconds <= 0:
            return None
        return self._cost / self._seconds

    @property
    def pressure(self) -> float:
        """Demand divided by the service rate; 0 while either is unknown."""
        return self._offered / (self.per_second * self.DEMAND_SECONDS) if self.per_second else 0.0

    def pressure_of(self, tenant: str, share: float, now: float) -> float:
        """One tenant's demand divided by its `share` (0 to 1) of the service rate; 0 if unknown."""
        return self._demand(tenant, now) / (share * self.per_second * self.DEMAND_SECONDS) if self.per_second else 0.0

    def demanding(self, tenant: str, weight: float, now: float) -> float:
        """Return the sum of the weights of the tenants that asked recently, including this one."""
        self._forget(now)
        return self._weights if tenant in self._tenants else self._weights + weight

    def _demand(self, tenant: str, now: float) -> float:
        value, at, _ = self._tenants.get(tenant, (0.0, now, 0.0))
        return value * math.exp(-(now - at) / self.DEMAND_SECONDS)

    def _forget(self, now: float) -> None:
        oldest = now - 3 * self.DEMAND_SECONDS
        while self._tenants:
            first, (_, at, _) = next(iter(self._tenants.items()))
            if at > oldest and len(self._tenants) <= self.TENANTS:
                break
            self._drop(first)

    def _drop(self, tenant: str) -> None:
        _, _, weight = self._tenants.pop(tenant, (0.0, 0.0, 0.0))
        # Setting the sum to 0 with the last tenant removes the rounding error.
        self._weights = self._weights - weight if self._tenants else 0.0

    @property
    def mean_cost(self) -> float:
        return self._cost / self._count if self._count else 0.0
