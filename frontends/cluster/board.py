"""Where replicas leave what they have served each tenant, and find what the others have: one for the whole application."""

import time
from collections.abc import Callable, Mapping

# A replica that has not asked for so long is gone, and nothing is kept for it.
GONE_SECONDS = 10.0
# Of each replica's mail; those that have had least are left out.
MOST_TENANTS = 1000


class Board:
    """Forgets everything when it is started anew, which costs no more than what was served in the second before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._mail: dict[str, dict[str, float]] = {}
        self._asked: dict[str, float] = {}

    async def exchange(self, replica: str, served: Mapping[str, float]) -> dict[str, float]:
        """Tell what a replica has served since it last did, as cost by tenant, and take what the others have since then."""
        now = self._clock()
        self._asked[replica] = now
        mine = self._mail.pop(replica, {})
        self._mail[replica] = {}
        for other in list(self._mail):
            if now - self._asked[other] > GONE_SECONDS:
                del self._mail[other], self._asked[other]
            elif other != replica:
                self._mail[other] = most(added(self._mail[other], served))
        return mine


def added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Both together, by tenant."""
    return {tenant: one.get(tenant, 0.0) + other.get(tenant, 0.0) for tenant in (*one, *(name for name in other if name not in one))}


def most(costs: dict[str, float]) -> dict[str, float]:
    if len(costs) <= MOST_TENANTS:
        return costs
    return dict(sorted(costs.items(), key=lambda item: -item[1])[:MOST_TENANTS])
