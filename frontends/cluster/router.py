"""The request router: the better of two random replicas, or the replica of an `Idempotency-Key`.

Ray Serve runs one router in each ingress.
"""

import random
import time
from collections import Counter
from collections.abc import Collection
from typing import Any

import attrs
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from frontends.cluster.replica_load import NEW, Load, in_order, place_of
from frontends.http.idempotency_store import HEADER

FIELDS = {field.name for field in attrs.fields(Load)}
# Replicas report twice a second. After this many seconds without a report a replica may be
# unreachable, which Ray detects later.
STALE_SECONDS = 3.0


class PredictedWaitRouter(RequestRouter):  # type: ignore[misc]  # Ray is not installed where types are checked
    """Routes by the replicas' reports, and by the requests that it has sent since these reports.

    Replicas report twice a second (`Replica.record_routing_stats`). The router picks the better of
    two random replicas, not the best of all. Otherwise the routers of all ingresses would send
    requests to the same replica until its next report.
    """

    def initialize_state(self, **_: Any) -> None:
        self._loads: dict[ReplicaID, Load] = {}
        self._heard: dict[ReplicaID, float] = {}
        self._clock = time.monotonic
        self._sent: Counter[ReplicaID] = Counter()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return all replicas in order, each with its own rank.

        Replicas that have refused the request come last, and before them those without a recent
        report.
        """
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        for name, replica in replicas.items():
            self._hear(name, replica.routing_stats)
        for gone in self._heard.keys() - replicas.keys():
            # Forget replicas that have left.
            for known in (self._loads, self._heard, self._sent):
                known.pop(gone, None)
        key, avoided = "", ()
        if pending_request is not None:
            # The arguments of `Replica.answer`.
            asked, avoided = pending_request.args
            key = asked.get(HEADER)
        order = self._of_key(key, replicas, avoided) if key else self._of_two(replicas, avoided)
        # Counted here and not when Ray reports that the request was routed. That is a round trip
        # later, when all requests of a burst would have been sent at random. Ray rejects none of
        # them (`max_ongoing_requests`), so the first replica gets the request.
        self._sent.update(order[:1])
        return [[replicas[name]] for name in order]

    def _of_two(self, names: Collection[ReplicaID], avoided: Collection[str]) -> list[ReplicaID]:
        doubts = {name: self._doubts(name, avoided) for name in names}
        shuffled = sorted(random.sample(list(names), len(names)), key=doubts.__getitem__)
        two = in_order([name for name in shuffled if doubts[name] == doubts[shuffled[0]]][:2], self._loads, self._sent)
        return [*two, *(name for name in shuffled if name not in two)]

    def _of_key(self, key: str, names: Collection[ReplicaID], avoided: Collection[str]) -> list[ReplicaID]:
        """Order replicas by the key, so that a repeated request reaches the same replica."""

        def rank(name: ReplicaID) -> tuple[tuple[bool, bool], bool, bytes]:
            return self._doubts(name, avoided), not self._loads.get(name, NEW).ready, place_of(key, name.unique_id)

        return sorted(names, key=rank)

    def _doubts(self, name: ReplicaID, avoided: Collection[str]) -> tuple[bool, bool]:
        """Return a sort key; replicas with a larger key are tried later."""
        return name.unique_id in avoided, self._clock() - self._heard[name] > STALE_SECONDS

    def _hear(self, name: ReplicaID, told: dict[str, Any]) -> None:
        self._heard.setdefault(name, self._clock())
        if told.keys() != FIELDS or told["number"] == self._loads.get(name, NEW).number:
            return
        self._loads[name] = Load(**told)
        self._heard[name] = self._clock()
        self._sent[name] = 0
