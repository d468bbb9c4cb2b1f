"""Outcomes of a simulation's requests, as counts that can be summed over several seeds."""

from collections.abc import Sequence

import attrs

from benchmarks.overload.traffic import Request
from llmserve.config import SLO

# Prefix of the names of a later mix's classes.
LATER = "later "


def kept(request: Request, slo: SLO) -> bool:
    """Whether the request was answered in full and within the SLO since its last attempt."""
    if request.finished is None or request.first is None:
        return False
    if slo.ttft is not None and request.first - request.sent > slo.ttft:
        return False
    if slo.tpot is None or request.output < 2:
        return True
    return (request.finished - request.first) / (request.output - 1) <= slo.tpot


@attrs.define(kw_only=True)
class Verdict:
    """Outcomes of the judged requests.

    Attributes:
        seconds: Duration over which the requests were sent.
        classes: [offered, kept] by length class; kept requests met the SLO.
        tenants: [offered, kept] by tenant.
        misses: Requests admitted but not kept.
        computed: Tokens that the engine computed.
        useful: Computed tokens that kept requests needed.
        ttfts: Times to the first token, sorted.
        slow_refusals: Requests refused after a wait.
        refusal_seconds: Sum of the waits before slow refusals.
        hinted: For each refused request that was admitted on a retry, the absolute error of its
            first Retry-After in seconds.
        at_first: Hinted requests that were admitted at their first retry.
        returned: Refused requests that were sent again.
    """

    seconds: float = 0.0
    offered: int = 0
    admitted: int = 0
    kept: int = 0
    misses: int = 0
    refused: int = 0
    slow_refusals: int = 0
    refusal_seconds: float = 0.0
    computed: int = 0
    useful: int = 0
    preemptions: int = 0
    classes: dict[str, list[int]] = attrs.field(factory=dict)
    tenants: dict[str, list[int]] = attrs.field(factory=dict)
    ttfts: list[float] = attrs.field(factory=list)
    hinted: list[float] = attrs.field(factory=list)
    at_first: int = 0
    returned: int = 0

    @property
    def goodput(self) -> float:
        """Kept requests per second."""
        return self.kept / self.seconds

    @property
    def miss_share(self) -> float:
        return self.misses / self.admitted if self.admitted else 0.0

    @property
    def wasted_share(self) -> float:
        return 1 - self.useful / self.computed if self.computed else 0.0

    @property
    def class_ratio(self) -> float:
        """Ratio of the kept shares of the worst-served and the best-served length class; 1 is fair.

        Classes of a later mix are compared only with each other, because they met another load.
        """
        ratios = []
        for later in (False, True):
            of = [counts for name, counts in self.classes.items() if name.startswith(LATER) is later]
            shares = [good / offered for offered, good in of if offered]
            if shares:
                ratios.append(min(shares) / max(shares) if max(shares) else 0.0)
        return min(ratios, default=0.0)

    def satisfaction(self) -> dict[str, float]:
        """Return each tenant's kept requests divided by its max-min fair share of all.

        No tenant's share is more than it asked for; the rest is divided equally.
        """
        left = {name: offered for name, (offered, _) in self.tenants.items() if offered}
        rest = float(sum(kept for _, kept in self.tenants.values()))
        shares: dict[str, float] = {}
        while left:
            level = rest / len(left)
            modest = [name for name, offered in left.items() if offered <= level] or list(left)
            for name in modest:
                shares[name] = min(float(left.pop(name)), level)
                rest -= shares[name]
        return {name: self.tenants[name][1] / share for name, share in shares.items() if share}

    @property
    def jain(self) -> float:
        """Jain's index over the tenants' satisfaction: 1 is fair, 1/n is the worst."""
        values = list(self.satisfaction().values())
        return sum(values) ** 2 / (len(values) * sum(value * value for value in values)) if any(values) else 0.0

    def ttft(self, share: float) -> float:
        return self.ttfts[min(len(self.ttfts) - 1, int(share * len(self.ttfts)))] if self.ttfts else 0.0


def judge(requests: Sequence[Request], names: Sequence[str], slo: SLO, seconds: float, preemptions: int) -> Verdict:
    """Judge requests; `names` are the names of the length classes."""
    verdict = Verdict(seconds=seconds, preemptions=preemptions)
    for request in requests:
        good = kept(request, slo)
        verdict.offered += 1
        verdict.kept += good
        verdict.refused += request.refusals > 0
        if request.admitted is not None:
            verdict.admitted += 1
            verdict.misses += not good
        if request.refused_after:
            verdict.slow_refusals += 1
            verdict.refusal_seconds += request.refused_after
        verdict.computed += request.computed
        verdict.useful += min(request.computed, request.prompt + request.output) if good else 0
        for table, name in ((verdict.classes, names[request.kind]), (verdict.tenants, request.tenant)):
            counts = table.setdefault(name, [0, 0])
            counts[0] += 1
            counts[1] += good
        if request.first is not None:
            verdict.ttfts.append(request.first - request.sent)
        if request.tries > 1 and request.hint is not None and request.hinted_at is not None:
            verdict.returned += 1
            if request.admitted is not None:
                verdict.hinted.append(abs(request.admitted - request.hinted_at - request.hint))
                verdict.at_first += request.tries == 2
    verdict.ttfts.sort()
    return verdict


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Combine the verdicts of several seeds."""
    whole = Verdict()
    for verdict in verdicts:
        for field in attrs.fields(Verdict):
            mine, theirs = getattr(whole, field.name), getattr(verdict, field.name)
            if isinstance(mine, dict):
                for name, counts in theirs.items():
                    mine[name] = [a + b for a, b in zip(mine.get(name, [0, 0]), counts, strict=True)]
            else:
                setattr(whole, field.name, mine + theirs)
    whole.ttfts.sort()
    return whole
