"""How many replicas there should be, from what they refuse, how long newcomers would wait, and how busy they are; and how many ingresses.
Ray Serve asks this for every decision, and applies its own bounds and delays to the answer."""

import math
from collections.abc import Iterable
from typing import Any

import attrs

from llmserve import ManagerStatistics
from llmserve.admission import Refusal

# One in a hundred refused is more than chance.
SHED_SHARE = 0.01
# As busy as replicas should be: what is left takes the swings of arrivals.
BUSY = 0.7
# Refused clients come again, so that what is offered looks like more than it is: it is not believed to be more than this many times
# what is served.
MAX_GROWTH = 2.0
# Nothing that more replicas would help against.
NOT_CAPACITY = frozenset(
    {Refusal.TENANT_LIMIT, Refusal.TENANT_TOKENS, Refusal.TENANT_UNKNOWN, Refusal.STARTING, Refusal.DRAINING, Refusal.STOPPED}
)


@attrs.define
class Pressure:
    """What one replica tells the autoscaler, from one time to the next."""

    patience: float
    _admitted: int = 0
    _refused: int = 0

    def of(self, statistics: ManagerStatistics, slots: int) -> dict[str, float]:
        """`shed`: the share refused for want of capacity. `wait`: a newcomer's, by what it may be. `busy`: the share of `slots` in use."""
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
    """For Ray Serve's `AutoscalingConfig(policy=...)`; `ctx` is its AutoscalingContext."""
    figures = ctx.aggregated_metrics or {}
    shed, wait, busy = (_mean(figures.get(name, {}).values()) for name in ("shed", "wait", "busy"))
    return desired(max(ctx.current_num_replicas, 1), shed, wait, busy, dict(ctx.policy_state or {}))


def desired(replicas: int, shed: float, wait: float, busy: float, state: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """How many there should be instead of `replicas`, and what is to be remembered.

    Where a promise is kept, replicas refuse long before every slot is taken: how busy they were then (`knee`) is as busy as they can be.
    """
    knee = state.get("knee", 1.0)
    if shed > SHED_SHARE:
        state["knee"] = min(max(busy, 0.05), 1.0)
        return max(replicas + 1, math.ceil(replicas * min(1 / max(1 - shed, 0.01), MAX_GROWTH))), state
    if wait > 1:
        return max(replicas + 1, math.ceil(replicas * min(wait, MAX_GROWTH))), state
    return max(1, min(math.ceil(replicas * busy / (BUSY * knee)), replicas)), state


def desired_ingresses(ctx: Any) -> tuple[float, dict[str, Any]]:
    """As many on each host as there are to be at least, also on one that came later: a host's proxy goes by its own ingress, and so
    loses nothing with another host's."""
    return ctx.capacity_adjusted_min_replicas * hosts(), {}


def hosts() -> int:
    """Those that Ray has and can reach."""
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
