"""What was decided about a request, and why: kept for a while, for whoever asks."""

from collections import Counter, deque

import attrs


@attrs.frozen(kw_only=True)
class Decision:
    """One decision and what it went by.

    Attributes:
        at: on the controller's clock.
        verdict: "started", "waits", "refused" or "relegated".
        constraint: what held it back or spoke against it (a gate's name or a `Refusal`), None if nothing did.
        running, waiting: just before.
        wait: predicted, in seconds; None while there is no rate to predict with.
        patience: the longest predicted wait that was allowed; None where it did not matter.
        margin: the share of the promised time per token that the policy goes up to; None if it has none.
        step_seconds: of the engine's mean step, None if unknown.
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
    """The last `size` decisions. `held` counts by constraint how often the head of the line was held back."""

    def __init__(self, size: int = 1024) -> None:
        self._decisions: deque[Decision] = deque(maxlen=size)
        self.held: Counter[str] = Counter()

    def add(self, decision: Decision) -> None:
        self._decisions.append(decision)

    def of(self, request_id: str) -> list[Decision]:
        """All that are kept about one request, the oldest first."""
        return [decision for decision in self._decisions if decision.request_id == request_id]

    def latest(self, count: int) -> list[Decision]:
        """The last ones, the newest first."""
        return list(reversed(self._decisions))[:count]
