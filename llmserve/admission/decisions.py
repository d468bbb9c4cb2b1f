"""A log of admission decisions and their reasons."""

from collections import defaultdict, deque
from typing import Any, NamedTuple

from llmserve.admission.prediction import PolicyFigures
from llmserve.admission.ticket import Ticket


class Decision(NamedTuple):
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
    """The last `size` decisions, and counts of all.

    `held` counts how often each constraint held the queue's head.
    """

    def __init__(self, size: int = 1024) -> None:
        self._decisions: deque[Decision] = deque(maxlen=size)
        self.admitted = 0
        self.refused: defaultdict[str, int] = defaultdict(int)
        self.held: defaultdict[str, int] = defaultdict(int)

    def add(
        self,
        ticket: Ticket,
        verdict: str,
        at: float,
        running: int,
        waiting: int,
        figures: PolicyFigures,
        constraint: str | None = None,
        wait: float | None = None,
        patience: float | None = None,
    ) -> None:
        """Add a decision about a ticket. `Decision` describes the arguments."""
        if verdict == "started":
            self.admitted += 1
        elif verdict == "refused" and constraint is not None:
            self.refused[constraint] += 1
        # By position, which takes half as long as by name.
        self._decisions.append(
            Decision(
                at,
                ticket.request_id,
                ticket.tenant,
                ticket.priority,
                ticket.prompt_tokens,
                ticket.expected_tokens,
                verdict,
                constraint,
                running,
                waiting,
                wait,
                patience,
                figures.margin,
                figures.step_seconds,
            )
        )

    def counts(self) -> dict[str, Any]:
        """Return the counts of `AdmissionStatistics` that this keeps."""
        return {"admitted": self.admitted, "refused": dict(self.refused), "held": dict(self.held)}

    def of(self, request_id: str) -> list[Decision]:
        """Return the decisions that are kept about one request, the oldest first."""
        return [decision for decision in self._decisions if decision.request_id == request_id]

    def latest(self, count: int) -> list[Decision]:
        """Return the last decisions, the newest first."""
        return list(reversed(self._decisions))[:count]
