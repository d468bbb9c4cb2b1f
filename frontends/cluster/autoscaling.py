"""The autoscaling policies: the desired number of replicas, and of ingresses.

The number of replicas depends on their refused requests, predicted waits and busy slots. Ray Serve
calls the policies for every decision, and applies its limits and delays to the result.
"""

import math
from collections.abc import Iterable
from typing import Any

import attrs

from llmserve import ManagerStatistics
from llmserve.admission import Refusal

# The share of refused requests above which replicas are added: 1 % is more than chance.
SHED_SHARE = 0.01
# The target share of busy slots, which leaves room for fluctuations of the load.
BUSY = 0.7
# Maximum growth per decision. Refused clients retry, so the offered load looks larger than it is.
MAX_GROWTH = 2.0
# Reasons of refusals that more replicas would not avoid.
NOT_CAPACITY = frozenset(
    {Refusal.TENANT_LIMIT, Refusal.TENANT_TOKENS, Refusal.TENANT_UNKNOWN, Refusal.STARTING, Refusal.DRAINING, Refusal.STOPPED}
)


@attrs.define
class Pressure:
    """One replica's metrics for the autoscaler. `patience` is the maximum wait in seconds."""

    patience: float
    _admitted: int = 0
    _refused: int = 0

    def of(self, statistics: ManagerStatistics, slots: int) -> dict[str, float]:
        """Return the metrics.

        `shed`: the share of requests refused for lack of capacity since the last call.
        `wait`: the predicted wait of a new request relative to `patience`.
        `busy`: the share of `slots` in use.
        """
        admission = statistics.admission
        if admission is None:
            return {"shed": 0.0, "wait": 0.0, "busy": 0.0}
        refused = sum(count for reason, count in admission.refused.items() if reason not in NOT_CAPACITY)
        more_admitted, more_refused = admission.admitted - self._admitted, refused - self._refused
        self._admitted, self._refused = admission.admitted, refused
        offered = more_admitted + more_refused
        wait = (admission.predicted_wait or 0.0) if admission.waiting else 0.0
        return {
            "shed": more_refused / offered if offered else 0.0,
            "wait": wait / self.patience,
            "busy": admission.running / slots,
        }


def desired_replicas(ctx: Any) -> tuple[float, dict[str, Any]]:
    """Return the number of replicas, for `AutoscalingConfig(policy=...)`.

    `ctx` is Ray Serve's AutoscalingContext.
    """
    figures = ctx.aggregated_metrics or {}
    shed, wait, busy = (_mean(figures.get(name, {}).values()) for name in ("shed", "wait", "busy"))
    return desired(max(ctx.current_num_replicas, 1), shed, wait, busy, dict(ctx.policy_state or {}))


def desired(replicas: int, shed: float, wait: float, busy: float, state: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the number of replicas that should replace `replicas`, and the new state.

    With an SLO, replicas refuse requests long before all slots are in use. Their share of busy
    slots at that point (`knee`) counts as their capacity.
    """
    knee = state.get("knee", 1.0)
    if shed > SHED_SHARE:
        state["knee"] = min(max(busy, 0.05), 1.0)
        return max(replicas + 1, math.ceil(replicas * min(1 / max(1 - shed, 0.01), MAX_GROWTH))), state
    if wait > 1:
        return max(replicas + 1, math.ceil(replicas * min(wait, MAX_GROWTH))), state
    return max(1, min(math.ceil(replicas * busy / (BUSY * knee)), replicas)), state


def desired_ingresses(ctx: Any) -> tuple[float, dict[str, Any]]:
    """Return the number of ingresses: the minimum number per host, times the number of hosts.

    A host's proxy uses its own ingress, so that the loss of another host does not affect it. Hosts
    that join later get ingresses too.
    """
    return ctx.capacity_adjusted_min_replicas * hosts(), {}


def hosts() -> int:
    """Return the number of hosts that are alive according to Ray."""
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
