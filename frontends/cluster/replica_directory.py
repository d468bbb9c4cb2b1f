"""The replicas that an ingress knows, and its choice: the better of two, or that of an `Idempotency-Key`.

Without I/O.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping

import attrs

from frontends.cluster.replica_load import NEW, Load, in_order, place_of

# Replicas report twice a second. After this many seconds without a report a replica may be
# unreachable, which Ray detects later.
STALE_SECONDS = 3.0


@attrs.frozen
class ReplicaAddress:
    """Where a replica's HTTP server listens, and the secret that each request must have there."""

    replica: str
    host: str
    port: int
    secret: str = attrs.field(repr=False)


@attrs.frozen
class ReplicaReport:
    """The last report of a replica. `silent`: seconds since then."""

    address: ReplicaAddress
    load: Load
    silent: float


class ReplicaDirectory:
    """Chooses by the replicas' reports, and by the requests that it has sent since these reports.

    It picks the better of two random replicas, not the best of all. Otherwise all ingresses would
    send requests to the same replica until its next report.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._addresses: dict[str, ReplicaAddress] = {}
        self._loads: dict[str, Load] = {}
        self._heard: dict[str, float] = {}
        self._sent: Counter[str] = Counter()

    def learn(self, reports: Mapping[str, ReplicaReport]) -> None:
        """Take the last reports of all replicas; those without one have left."""
        now = self._clock()
        for gone in self._addresses.keys() - reports.keys():
            for known in (self._addresses, self._loads, self._heard, self._sent):
                known.pop(gone, None)
        for name, report in reports.items():
            self._addresses[name] = report.address
            if name not in self._loads or report.load.number != self._loads[name].number:
                self._loads[name] = report.load
                self._heard[name] = now - report.silent
                self._sent[name] = 0

    @property
    def known(self) -> list[str]:
        """The names of all replicas."""
        return list(self._addresses)

    def doubt(self, name: str) -> None:
        """Choose a replica that could not be reached last, until its next report."""
        if name in self._heard:
            self._heard[name] = -math.inf

    def choose(self, key: str = "", avoided: Collection[str] = ()) -> ReplicaAddress | None:
        """Return the replica for a request, which counts as sent; None if all are `avoided`."""
        name = next((name for name in self.order(key, avoided) if name not in avoided), None)
        if name is None:
            return None
        # Counted now and not when the replica answers: until then a whole burst may come.
        self._sent[name] += 1
        return self._addresses[name]

    def order(self, key: str = "", avoided: Collection[str] = ()) -> list[str]:
        """Return all replicas, the best first.

        Those that are `avoided` come last, and before them those without a recent report.
        """
        return self._of_key(key, avoided) if key else self._of_two(avoided)

    def _of_two(self, avoided: Collection[str]) -> list[str]:
        names = list(self._addresses)
        doubts = {name: self._doubts(name, avoided) for name in names}
        shuffled = sorted(random.sample(names, len(names)), key=doubts.__getitem__)
        two = in_order([name for name in shuffled if doubts[name] == doubts[shuffled[0]]][:2], self._loads, self._sent)
        return [*two, *(name for name in shuffled if name not in two)]

    def _of_key(self, key: str, avoided: Collection[str]) -> list[str]:
        """Order replicas by the key, so that a repeated request reaches the same replica."""

        def rank(name: str) -> tuple[tuple[bool, bool], bool, bytes]:
            return self._doubts(name, avoided), not self._loads.get(name, NEW).ready, place_of(key, name)

        return sorted(self._addresses, key=rank)

    def _doubts(self, name: str, avoided: Collection[str]) -> tuple[bool, bool]:
        """Return a sort key; replicas with a larger key are tried later."""
        return name in avoided, self._clock() - self._heard[name] > STALE_SECONDS
