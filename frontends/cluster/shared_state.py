"""The state that replicas share: their addresses and loads, each tenant's usage, and the metrics of dead replicas.

There is one for the whole application.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress

import attrs

from frontends.cluster.replica_directory import ReplicaAddress, ReplicaReport
from frontends.cluster.replica_load import Load
from llmserve import MetricsSnapshot
from llmserve.admission import UsageDelta
from llmserve.admission.usage import added

# Seconds without a report after which a replica is forgotten; Ray has replaced it by then.
LEFT_SECONDS = 120.0
# Seconds without an exchange after which only a replica's metrics are kept: it is dead or
# unreachable.
GONE_SECONDS = 10.0
# Seconds without an exchange after which a replica's metrics are merged into those of all dead
# replicas. If it reported again afterwards, they would count twice.
BURIED_SECONDS = 3600.0
# Maximum number of tenants in a replica's pending usage; tenants with the least usage are dropped.
MAX_TENANTS = 1000

# The time of a report on the replica's clock, and its metrics.
Told = tuple[float, MetricsSnapshot]


@attrs.define
class _Replica:
    """A replica's metrics and open requests at its last exchange, at the time `asked`.

    `mail` is the usage on other replicas that it has not fetched yet.
    """

    asked: float
    metrics: MetricsSnapshot
    open: Mapping[str, int]
    mail: UsageDelta = attrs.field(factory=UsageDelta)


class SharedState:
    """The shared state.

    A restart loses the state: the tenants' usage of the last second, and all metrics of dead
    replicas. The replicas report again within a second.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._replicas: dict[str, _Replica] = {}
        self._gone: MetricsSnapshot | None = None
        self._reports: dict[str, tuple[float, ReplicaAddress, Load]] = {}
        # Set, and replaced, when a replica joins or leaves.
        self._changed = asyncio.Event()

    # Where the replicas are

    async def report(self, address: ReplicaAddress, load: Load) -> None:
        """Note a replica's address and load, twice a second."""
        is_new = address.replica not in self._reports
        self._reports[address.replica] = self._clock(), address, load
        if is_new:
            self._notify()

    async def leave(self, replica: str) -> None:
        """Forget a replica that accepts no more requests."""
        if self._reports.pop(replica, None):
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def reports(self, known: Collection[str] = (), patience: float = 0.0) -> dict[str, ReplicaReport]:
        """Return the last report of each replica, for an ingress.

        If these are the `known` replicas, this waits for a new one, or one that leaves, for `patience`
        seconds at most.
        """
        if self._reports.keys() == set(known):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), patience)
        now = self._clock()
        for name in [name for name, (told, _, _) in self._reports.items() if now - told > LEFT_SECONDS]:
            del self._reports[name]
        return {name: ReplicaReport(address, load, now - told) for name, (told, address, load) in self._reports.items()}

    # Usage and metrics

    async def exchange(self, replica: str, served: UsageDelta, told: Told) -> UsageDelta:
        """Exchange a replica's usage since its last exchange for that of the other replicas.

        Both include the tenants' open requests. `told` are the replica's metrics.
        """
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
        """Return the last metrics of all replicas except those alive; None if there are none."""
        lately = [self._replicas[name].metrics.ended() for name in self._replicas.keys() - set(alive)]
        parts = [*lately, self._gone] if self._gone is not None else lately
        return (self._clock(), MetricsSnapshot.of_engines(parts)) if parts else None

    def _bury(self, replica: str) -> None:
        ended = self._replicas.pop(replica).metrics.ended()
        self._gone = ended if self._gone is None else MetricsSnapshot.of_engines([self._gone, ended])
