"""`thin:R`: random refusals, so that R requests per second are admitted and start at once."""

import math
import random
from collections.abc import Sequence

from benchmarks.stand_ins.contender import Refusing, Setup
from llmserve.admission import AdmissionController, Refused, Ticket, Unlimited

SOURCE, URL = "random thinning, the best rate in hindsight", "https://sre.google/sre-book/handling-overload"
HEADLINE = "none; the best that is possible without a look at the requests"
SIGNALS = {"arrivals per second": lambda one: one.offered}
SHARES = (0.9, 1.0, 1.1, 1.25, 1.4)


class Thinning(Refusing):
    """Admits `rate` requests per second at random and lets all of them start."""

    def __init__(self, rate: float, seed: int) -> None:
        super().__init__(Unlimited())
        self._rate_taken = rate
        self._random = random.Random(f"thinning {seed}")
        self._arrivals = self._at = self.offered = 0.0

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        # The arrival rate over about ten seconds.
        self._arrivals = self._arrivals * math.exp((self._at - now) / 10) + 1
        self._at = now
        self.offered = self._arrivals / max(0.1, 10 * (1 - math.exp(-now / 10)))
        if self._random.random() > self._rate_taken / self.offered:
            return self.refuse(ticket, now)
        return super().offer(ticket, now)


def make(setup: Setup, rate: str) -> AdmissionController:
    return Thinning(float(rate), setup.seed)


def variants(setup: Setup) -> Sequence[str]:
    assert setup.known is not None
    return [f"{share * setup.known.capacity:.4g}" for share in SHARES]
