"""`kvwarden:R`: KVWarden's token bucket of R requests per second for each tenant, before a fair queue.

The bucket holds one second's requests and refuses with 429 when it is empty. 256 requests may be in
the engine, and 2,048 may wait, each for at most the TTFT SLO. The tenant with the fewest requests
in the engine is next; here the controller's own queue takes that part.
"""

from collections.abc import Sequence

from benchmarks.stand_ins.contender import Refusing, Setup
from benchmarks.stand_ins.contenders.thin import SHARES
from llmserve.admission import AdmissionController, FixedLimit, Refused, Ticket

SOURCE, URL = "KVWarden: token buckets and deficit round robin, tuned in hindsight", "https://github.com/coconut-labs/kvwarden"
HEADLINE = "a quiet tenant's TTFT p99 1.14 times its value alone beside a flood, of which the bucket admits a third"
SIGNALS = {"tokens of the fullest bucket": lambda one: max((left for left, _ in one.buckets.values()), default=None)}
RUNNING, WAITING = 256, 2048


class Buckets(Refusing):
    """A bucket for each tenant as (tokens, time of that value)."""

    def __init__(self, setup: Setup, rate: float) -> None:
        limit = FixedLimit(limit=RUNNING, max_wait=setup.slo.ttft or 30.0)
        super().__init__(limit, max_waiting=WAITING)
        self._filling = rate
        self.buckets: dict[str, tuple[float, float]] = {}

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        most = max(1.0, self._filling)
        left, at = self.buckets.get(ticket.tenant, (most, now))
        left = min(most, left + (now - at) * self._filling)
        enough = left >= 1
        self.buckets[ticket.tenant] = left - enough, now
        return super().offer(ticket, now) if enough else self.refuse(ticket, now)


def make(setup: Setup, rate: str) -> AdmissionController:
    return Buckets(setup, float(rate))


def variants(setup: Setup) -> Sequence[str]:
    assert setup.known is not None
    return [f"{share * setup.known.capacity:.4g}" for share in SHARES]
