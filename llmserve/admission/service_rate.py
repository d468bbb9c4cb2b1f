"""How fast the line is served, and whether more is asked for than that."""

import math


class ServiceRate:
    """Cost per second that is taken from the line, counted only while the engine was full or somebody waited: at other times it is the
    demand that is seen, and not what could be served. `pressure` is demand against that, over some seconds; `backlog` adds up what is asked
    for too much, so that it tells an overload, however slight, from a lump of requests that passes (Page's cumulative sum, 1954)."""

    # Long enough to see over the lumps in which slots come free, short enough to follow a change within a few TTFTs.
    SECONDS = 1.5
    # Fewer than so many are not forgotten for newer ones, or the rate of a slow engine would be that of its last request.
    MIN_COUNT = 16
    # Demand comes more evenly than slots do, and is wanted as it is over several answers.
    DEMAND_SECONDS = 4.0
    # An engine that has room is proof that an overload is over, however much was asked for a moment ago.
    ROOM_SECONDS = 1.0
    # The longest backlog, in seconds: beyond it an overload is no more certain, and is to be forgotten soon after it.
    LONGEST = 6.0

    # Of more, those that asked longest ago are forgotten.
    TENANTS = 1024

    def __init__(self) -> None:
        self._cost = self._seconds = self._count = 0.0
        self._offered = 0.0
        # Seconds that it would take to serve whatever is left of what was asked for, if nobody were refused.
        self.backlog = 0.0
        # Each tenant's, in the order in which they asked last: how much, as of when, and its weight; and all of their weights together.
        # A caller may be another tenant every time, so that nothing here may cost more for each of them.
        self._tenants: dict[str, tuple[float, float, float]] = {}
        self._weights = 0.0
        self._since: float | None = None

    def advance(self, now: float, *, full: bool) -> None:
        """To be told before anything changes: whether the engine has been full, or somebody has waited, until now."""
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
        """Nothing until now is to count."""
        self._since = now

    def offered(self, tenant: str, cost: float, now: float, weight: float = 1.0) -> None:
        """Somebody asks for it, whatever becomes of that."""
        self._offered += cost
        if self.per_second:
            self.backlog = min(self.LONGEST, self.backlog + cost / self.per_second)
        demand = self._demand(tenant, now) + cost
        self._drop(tenant)
        self._tenants[tenant] = demand, now, weight
        self._weights += weight
        self._forget(now)

    def served(self, cost: float) -> None:
        """Somebody starts who fills the engine, or who had to wait."""
        self._cost += cost
        self._count += 1

    @property
    def per_second(self) -> float | None:
        """None until it has been seen for long enough to speak of."""
        if self._count < 2 or self._seconds <= 0:
            return None
        return self._cost / self._seconds

    @property
    def pressure(self) -> float:
        """Demand by what can be served; 0 while either is unknown."""
        return self._offered / (self.per_second * self.DEMAND_SECONDS) if self.per_second else 0.0

    def pressure_of(self, tenant: str, share: float, now: float) -> float:
        """One tenant's demand by its `share` (0 to 1) of what can be served; 0 while either is unknown."""
        return self._demand(tenant, now) / (share * self.per_second * self.DEMAND_SECONDS) if self.per_second else 0.0

    def demanding(self, tenant: str, weight: float, now: float) -> float:
        """The weights of those who have asked lately, and of this tenant, together."""
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
        # Without the last one there is no rounding left either.
        self._weights = self._weights - weight if self._tenants else 0.0

    @property
    def mean_cost(self) -> float:
        return self._cost / self._count if self._count else 0.0
