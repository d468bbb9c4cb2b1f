"""A log of admission decisions and their reasons."""

from collections import Counter, deque

import attrs


@attrs.frozen(kw_only=True)
class Decision:
    """One decision and its inputs.

    Attributes:
        at: Time on the controller's clock.
        verdict: "started", "waits", "refused", "relegated" (to leftover capacity) or "may be late".
        constraint: The reason against a start (a gate's name or a `Refusal`), None if there is
            none.
        running, waiting: Numbers of tickets just before the decision.
        wait: Predicted wait in seconds; None while there is no rate to predict with.
        patience: Longest predicted wait that was allowed; None if it did not matter.
        margin: Share of the target time per token that the policy uses; None if it has none.
        step_seconds: Duration of the engine's mean step, None if unknown.
    """

    at: float
    request_id: str
    tenant: str
    priority: int
    prompt_tokens: int
    expected_tokens: float
    verdict: str
    constraint: str | None
    running: int
    waiting: int
    wait: float | None = None
    patience: float | None = None
    margin: float | None = None
    step_seconds: float | None = None


class DecisionLog:
    """The last `size` decisions. `held` counts how often each constraint held the queue's head."""

    def __init__(self, size: int = 1024) -> None:
        self._decisions: deque[Decision] = deque(maxlen=size)
        self.held: Counter[str] = Counter()

    def add(self, decision: Decision) -> None:
        self._decisions.append(decision)

    def of(self, request_id: str) -> list[Decision]:
        """Return the decisions that are kept about one request, the oldest first."""
        return [decision for decision in self._decisions if decision.request_id == request_id]

    def latest(self, count: int) -> list[Decision]:
        """Return the last decisions, the newest first."""
        return list(reversed(self._decisions))[:count]
