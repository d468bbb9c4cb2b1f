"""Which replica gets a request: the one of two by chance that would serve it sooner. Ray Serve runs one of these in each ingress."""

import random
from collections import Counter
from typing import Any

import attrs
from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from frontends.cluster.load import NEW, Load, in_order

FIELDS = {field.name for field in attrs.fields(Load)}


class PredictedWaitRouter(RequestRouter):  # type: ignore[misc]  # Ray is not there where types are checked
    """Goes by what replicas tell of themselves (`Replica.record_routing_stats`), twice a second, and by what it has sent them since.

    Two by chance and not the best of all: there are as many routers as ingresses, and they would all send to the same one until it tells.
    """

    def initialize_state(self, **_: Any) -> None:
        self._loads: dict[ReplicaID, Load] = {}
        self._sent: Counter[ReplicaID] = Counter()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All of them in order, each a rank of its own. Those that have refused the request come last."""
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        for name, replica in replicas.items():
            self._hear(name, replica.routing_stats)
        for gone in self._sent.keys() - replicas.keys():
            # Replicas come and go for as long as this lives.
            self._loads.pop(gone, None)
            del self._sent[gone]
        avoided = set(pending_request.args[1]) if pending_request is not None and len(pending_request.args) > 1 else set()
        names = random.sample(list(replicas), len(replicas))
        two = in_order([name for name in names if name.unique_id not in avoided][:2], self._loads, self._sent)
        rest = sorted((name for name in names if name not in two), key=lambda name: name.unique_id in avoided)
        return [[replicas[name]] for name in (*two, *rest)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        self._sent[replica_id] += 1

    def _hear(self, name: ReplicaID, told: dict[str, Any]) -> None:
        if told.keys() != FIELDS or told["number"] == self._loads.get(name, NEW).number:
            return
        self._loads[name] = Load(**told)
        self._sent[name] = 0
