"""A limit that grows by a constant while the SLO is met, and shrinks by a factor while it is not.

Every second the 95th percentile of the times to the first token, since the arrival, is compared
with the SLO, and that of the times per token too. The description leaves the constants open; these
are TCP's increase of one and a decrease by a fifth.
"""

from benchmarks.stand_ins.contender import UNBOUNDED, Setup
from benchmarks.stand_ins.contenders.fixed import third
from llmserve.admission import AdmissionController, FixedLimit, Ticket

SOURCE, URL = "AIMD on the SLO", "https://nicolas-richard.github.io/posts/adaptive-concurrency-wfq-aimd-ttft-slo.html"
HEADLINE = "no figure of goodput; replaces limits that are picked by hand"
SIGNALS = {"limit": lambda one: one.policy.limit, "worst of TTFT and TPOT p95, of the SLO": lambda one: one.level}
PERIOD, SHARE, INCREASE, DECREASE = 1.0, 0.95, 1, 0.8


class AIMD(AdmissionController):
    """Changes a fixed limit once in a period."""

    def __init__(self, setup: Setup) -> None:
        self.limit = FixedLimit(limit=min(16, setup.max_num_seqs), max_wait=third(setup))
        super().__init__(self.limit, max_waiting=UNBOUNDED)
        self._slo, self._most = setup.slo, setup.max_num_seqs
        self._first: dict[Ticket, float] = {}
        self._ratios: list[float] = []
        self._next = PERIOD
        self.level: float | None = None

    def first_token(self, ticket: Ticket, now: float) -> list[Ticket]:
        self._first[ticket] = now
        if self._slo.ttft is not None and ticket.arrived is not None:
            self._ratios.append((now - ticket.arrived) / self._slo.ttft)
        return super().first_token(ticket, now)

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        first = self._first.pop(ticket, now)
        if self._slo.tpot is not None and ticket.complete and ticket.generated > 1:
            self._ratios.append((now - first) / (ticket.generated - 1) / self._slo.tpot)
        if now >= self._next and self._ratios:
            self.level = sorted(self._ratios)[int(SHARE * len(self._ratios))]
            limit = self.limit.limit + INCREASE if self.level <= 1 else int(self.limit.limit * DECREASE)
            self.limit.limit = min(max(1, limit), self._most)
            self._ratios, self._next = [], now + PERIOD
        return super().leave(ticket, now)


def make(setup: Setup) -> AdmissionController:
    return AIMD(setup)
