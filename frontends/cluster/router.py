"""Which replica gets a request: the one of two by chance that would serve it sooner, or the one that remembers it. Ray Serve runs one of
these in each ingress."""

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
# They tell twice a second: one that has not for so long may be out of reach, which Ray notices later.
STALE_SECONDS = 3.0


class PredictedWaitRouter(RequestRouter):  # type: ignore[misc]  # Ray is not there where types are checked
    """Goes by what replicas tell of themselves (`Replica.record_routing_stats`), twice a second, and by what it has sent them since.

    Two by chance and not the best of all: there are as many routers as ingresses, and they would all send to the same one until it tells.
    """

    def initialize_state(self, **_: Any) -> None:
        self._loads: dict[ReplicaID, Load] = {}
        self._heard: dict[ReplicaID, float] = {}
        self._clock = time.monotonic
        self._sent: Counter[ReplicaID] = Counter()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All of them in order, each a rank of its own. Those that have refused the request come last, before them those that
        have not told anything for too long."""
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        for name, replica in replicas.items():
            self._hear(name, replica.routing_stats)
        for gone in self._heard.keys() - replicas.keys():
            # Replicas come and go for as long as this lives.
            for known in (self._loads, self._heard, self._sent):
                known.pop(gone, None)
        key, avoided = "", ()
        if pending_request is not None:
            # Of `Replica.answer`.
            asked, avoided = pending_request.args
            key = asked.get(HEADER)
        order = self._of_key(key, replicas, avoided) if key else self._of_two(replicas, avoided)
        # Here and not when Ray says that it was routed, which is a way there and back later: a burst would be over by then, every one of
        # it sent by chance. None is turned away (`max_ongoing_requests`), so the first is the one that gets it.
        self._sent.update(order[:1])
        return [[replicas[name]] for name in order]

    def _of_two(self, names: Collection[ReplicaID], avoided: Collection[str]) -> list[ReplicaID]:
        doubts = {name: self._doubts(name, avoided) for name in names}
        shuffled = sorted(random.sample(list(names), len(names)), key=doubts.__getitem__)
        two = in_order([name for name in shuffled if doubts[name] == doubts[shuffled[0]]][:2], self._loads, self._sent)
        return [*two, *(name for name in shuffled if name not in two)]

    def _of_key(self, key: str, names: Collection[ReplicaID], avoided: Collection[str]) -> list[ReplicaID]:
        """The same one each time, which knows what it has answered."""

        def rank(name: ReplicaID) -> tuple[tuple[bool, bool], bool, bytes]:
            return self._doubts(name, avoided), not self._loads.get(name, NEW).ready, place_of(key, name.unique_id)

        return sorted(names, key=rank)

    def _doubts(self, name: ReplicaID, avoided: Collection[str]) -> tuple[bool, bool]:
        """The larger, the later it is asked."""
        return name.unique_id in avoided, self._clock() - self._heard[name] > STALE_SECONDS

    def _hear(self, name: ReplicaID, told: dict[str, Any]) -> None:
        self._heard.setdefault(name, self._clock())
        if told.keys() != FIELDS or told["number"] == self._loads.get(name, NEW).number:
            return
        self._loads[name] = Load(**told)
        self._heard[name] = self._clock()
        self._sent[name] = 0
