"""Where replicas leave what they have served each tenant, and find what the others have; and where their counts outlive them. One for the
whole application."""

import time
from collections.abc import Callable, Iterable, Mapping

import attrs

from llmserve import MetricsSnapshot
from llmserve.admission import UsageDelta
from llmserve.admission.usage import added

# Of a replica that has not asked for so long nothing is kept but what it had counted: it is gone, or cannot be reached.
GONE_SECONDS = 10.0
# Then its counts lose its name: if it told them again after that, they would be counted twice.
BURIED_SECONDS = 3600.0
# Of each replica's mail; those that have had least are left out.
MAX_TENANTS = 1000

# Facts, and when they were told on the teller's own clock.
Told = tuple[float, MetricsSnapshot]


@attrs.define
class _Replica:
    """When it last asked, what it had counted and who had requests open there; and the `mail` that it has not fetched."""

    asked: float
    metrics: MetricsSnapshot
    open: Mapping[str, int]
    mail: UsageDelta = attrs.field(factory=UsageDelta)


class SharedState:
    """Forgets everything when it is started anew: of tenants' service no more than that of the second before, but all counts of replicas
    that were gone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._replicas: dict[str, _Replica] = {}
        self._gone: MetricsSnapshot | None = None

    async def exchange(self, replica: str, served: UsageDelta, told: Told) -> UsageDelta:
        """Tell what a replica has served since it last did, and what it has counted so far; take what the others have served since then,
        and have open."""
        now = self._clock()
        then, metrics = told
        mine = self._replicas[replica].mail if replica in self._replicas else UsageDelta()
        self._replicas[replica] = _Replica(now, metrics.shifted(now - then), served.open)
        elsewhere: Mapping[str, int] = {}
        for name, other in list(self._replicas.items()):
            silent = now - other.asked
            if silent > BURIED_SECONDS:
                self._bury(name)
            elif silent > GONE_SECONDS:
                other.mail, other.open = UsageDelta(), {}
            elif name != replica:
                other.mail = other.mail.then(served).largest(MAX_TENANTS)
                elsewhere = added(elsewhere, other.open)
        return attrs.evolve(mine, open=elsewhere)

    async def gone(self, alive: Iterable[str]) -> Told | None:
        """What replicas had last told, all but those; None if there was none."""
        lately = [self._replicas[name].metrics.ended() for name in self._replicas.keys() - set(alive)]
        parts = [*lately, self._gone] if self._gone is not None else lately
        return (self._clock(), MetricsSnapshot.of_engines(parts)) if parts else None

    def _bury(self, replica: str) -> None:
        ended = self._replicas.pop(replica).metrics.ended()
        self._gone = ended if self._gone is None else MetricsSnapshot.of_engines([self._gone, ended])
