"""Netflix's concurrency limit: it follows the ratio of long-term to recent latency.

The parameters are those of its authors' library: smoothing 0.2, tolerance 1.5, a long window of
600, a queue of 4.
"""

import attrs

from benchmarks.stand_ins.contender import UNBOUNDED, Setup
from benchmarks.stand_ins.contenders.fixed import third
from llmserve.admission import AdmissionController, FixedLimit, Ticket

SOURCE, URL = "Gradient2, Netflix concurrency-limits", "https://github.com/Netflix/concurrency-limits"
HEADLINE = "no figure; finds the limit of a service by itself"
SIGNALS = {
    "limit": lambda one: one.policy.limit,
    "latency, s": lambda one: one.policy.took or None,
    "long-term latency, s": lambda one: one.policy.long or None,
}


@attrs.define
class Gradient2(FixedLimit):
    """A limit that falls while requests take longer than usual."""

    limit: int = 20
    name: str = "gradient2"
    most: int = 256
    long: float = attrs.field(default=0.0, init=False)
    took: float = attrs.field(default=0.0, init=False)
    _estimate: float = attrs.field(default=20.0, init=False)

    def left(self, ticket: Ticket, now: float) -> float | None:
        running = self._running
        if ticket.complete and ticket.granted is not None:
            took = self.took = now - ticket.granted
            self.long += (took - self.long) / 600 if self.long else took
            if self.long / took > 2:
                self.long *= 0.95
            if running >= self._estimate / 2:
                gradient = min(1.0, max(0.5, 1.5 * self.long / took))
                self._estimate = self._estimate * 0.8 + 0.2 * (self._estimate * gradient + 4)
                self._estimate = min(max(self._estimate, 1.0), float(self.most))
                self.limit = int(self._estimate)
        return super().left(ticket, now)


def make(setup: Setup) -> AdmissionController:
    return AdmissionController(Gradient2(max_wait=third(setup), most=setup.max_num_seqs), max_waiting=UNBOUNDED)
