"""Predicts waits in the queue and times for a retry, and describes the queue to the policy."""

import attrs

from llmserve.admission.fair_queue import FairQueue
from llmserve.admission.length_estimates import AnswerLengths
from llmserve.admission.prediction import QueueState
from llmserve.admission.refusals import Refusal, Refused
from llmserve.admission.retry_after import RetryAfter
from llmserve.admission.service_rate import ServiceRate
from llmserve.admission.tenants import Tenants
from llmserve.admission.ticket import Ticket

# Seconds of its share that a tenant may leave unused and use later. Requests come in bursts, and
# shares apply to longer periods.
CREDIT = 4.0


@attrs.frozen
class QueueForecast:
    """Reads the parts of a controller: its queue, service rate, tenants and answer lengths."""

    line: FairQueue
    rate: ServiceRate
    tenants: Tenants
    answers: AnswerLengths
    _retry: RetryAfter = attrs.field(factory=RetryAfter, init=False)

    def wait(self, tenant: str, priority: int) -> float | None:
        """Seconds until a newcomer would start; None if unknown.

        The result is the cost ahead of it divided by the service rate.
        """
        rate = self.rate.per_second
        if rate is None:
            return None
        return (self.line.ahead_of(tenant, priority) + self.rate.mean_cost) / rate

    @property
    def interval(self) -> float:
        """Seconds between two tickets that leave the queue, 0 if unknown."""
        rate = self.rate.per_second
        return self.rate.mean_cost / rate if rate else 0.0

    def figures(self) -> dict[str, float | None]:
        """Return the figures of `AdmissionStatistics` that this predicts."""
        interval = self.interval
        return {"drain_rate": 1 / interval if interval else None, "predicted_wait": self.wait("", 0)}

    def state(self, tenant: str, now: float) -> QueueState:
        """Return the queue as this tenant's tickets find it; also set the credit of tenants."""
        rate, answer_tokens = self.rate, self.answers.mean()
        per_second = rate.per_second
        if not per_second:
            return QueueState(rate.backlog, 0.0, 0.0, 0.0, 0.0, answer_tokens)
        pace = 1 / per_second
        pressure = own = rate.pressure
        if rate.backlog:
            weight = self.tenants.weight(tenant)
            weights = rate.demanding(tenant, weight, now)
            self.line.credit = CREDIT * per_second / weights
            own = rate.pressure_of(tenant, weight / weights, now)
        return QueueState(rate.backlog, pace * rate.mean_cost, pace, pressure, own, answer_tokens)

    def refused(self, reason: Refusal, ticket: Ticket, wait: float | None, patience: float, now: float) -> Refused:
        """Return a refusal with the time for a retry. `wait` and `patience` are in seconds."""
        over = (wait or 0.0) - patience
        return Refused(reason, self._retry.next(now, self.interval, over, ticket.request_id), wait)
