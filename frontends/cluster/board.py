"""Where replicas leave what they have served each tenant, and find what the others have; and where their counts outlive them. One for the
whole application."""

import time
from collections.abc import Callable, Iterable, Mapping

from llmserve import Facts

# A replica that has not asked for so long is gone, and nothing is kept for it but what it had counted.
GONE_SECONDS = 10.0
# Of each replica's mail; those that have had least are left out.
MOST_TENANTS = 1000

# Facts, and when they were told on the teller's own clock.
Told = tuple[float, Facts]


class Board:
    """Forgets everything when it is started anew: of tenants' service no more than that of the second before, but all counts of replicas
    that were gone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._mail: dict[str, dict[str, float]] = {}
        self._asked: dict[str, float] = {}
        self._facts: dict[str, Facts] = {}
        self._gone: Facts | None = None

    async def exchange(self, replica: str, served: Mapping[str, float], told: Told) -> dict[str, float]:
        """Tell what a replica has served since it last did, as cost by tenant, and what it has counted so far; take what the others have
        served since then."""
        now = self._clock()
        then, facts = told
        self._asked[replica], self._facts[replica] = now, facts.shifted(now - then)
        mine = self._mail.pop(replica, {})
        self._mail[replica] = {}
        for other in list(self._mail):
            if now - self._asked[other] > GONE_SECONDS:
                self._bury(other)
            elif other != replica:
                self._mail[other] = most(added(self._mail[other], served))
        return mine

    async def gone(self, alive: Iterable[str]) -> Told | None:
        """What replicas had counted that are no more, all but those; None if there was none."""
        lately = [self._facts[name].ended() for name in self._facts.keys() - set(alive)]
        parts = [*lately, self._gone] if self._gone is not None else lately
        return (self._clock(), Facts.of_engines(parts)) if parts else None

    def _bury(self, replica: str) -> None:
        del self._mail[replica], self._asked[replica]
        ended = self._facts.pop(replica).ended()
        self._gone = ended if self._gone is None else Facts.of_engines([self._gone, ended])


def added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Both together, by tenant."""
    return {tenant: one.get(tenant, 0.0) + other.get(tenant, 0.0) for tenant in (*one, *(name for name in other if name not in one))}


def most(costs: dict[str, float]) -> dict[str, float]:
    if len(costs) <= MOST_TENANTS:
        return costs
    return dict(sorted(costs.items(), key=lambda item: -item[1])[:MOST_TENANTS])
