"""What came of a simulation's requests. Counts, so that those of several seeds can be put together."""

from collections.abc import Sequence

import attrs

from benchmarks.overload.traffic import Request
from llmserve.config import SLO

# How the names of a later mix's classes begin.
LATER = "later "


def kept(request: Request, slo: SLO) -> bool:
    """Whether it was answered whole, as fast as promised, counted from when it was sent last."""
    if request.finished is None or request.first is None:
        return False
    if slo.ttft is not None and request.first - request.sent > slo.ttft:
        return False
    if slo.tpot is None or request.output < 2:
        return True
    return (request.finished - request.first) / (request.output - 1) <= slo.tpot


@attrs.define(kw_only=True)
class Verdict:
    """Of the requests that were judged.

    Attributes:
        seconds: over which they were sent.
        classes, tenants: by name, [offered, kept].
        misses: admitted, and not kept.
        computed, useful: tokens that the engine worked on, and those of them that were needed for requests that were kept.
        ttfts: of those with a first token, sorted.
        slow_refusals: after some waiting; `refusal_seconds` their sum.
        hinted: refused ones that came back as they were told to and were admitted: seconds off, one way or the other, of the first hint;
            `at_first` of them at the first return; `returned` is how many came back.
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
        """Requests a second that were kept."""
        return self.kept / self.seconds

    @property
    def miss_share(self) -> float:
        return self.misses / self.admitted if self.admitted else 0.0

    @property
    def wasted_share(self) -> float:
        return 1 - self.useful / self.computed if self.computed else 0.0

    @property
    def class_ratio(self) -> float:
        """The share of requests kept in the worst-served class of lengths, by that of the best-served; 1 is even-handed. Classes of a later
        mix are held against each other alone: they met another load."""
        ratios = []
        for later in (False, True):
            of = [counts for name, counts in self.classes.items() if name.startswith(LATER) is later]
            shares = [good / offered for offered, good in of if offered]
            if shares:
                ratios.append(min(shares) / max(shares) if max(shares) else 0.0)
        return min(ratios, default=0.0)

    def satisfaction(self) -> dict[str, float]:
        """For each tenant what it got, by its max-min fair share of what all got: nobody gets more than asked for, and what that leaves
        is shared alike."""
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
        """Jain's index over tenants' satisfaction: 1 is fair, 1/n the worst."""
        values = list(self.satisfaction().values())
        return sum(values) ** 2 / (len(values) * sum(value * value for value in values)) if any(values) else 0.0

    def ttft(self, share: float) -> float:
        return self.ttfts[min(len(self.ttfts) - 1, int(share * len(self.ttfts)))] if self.ttfts else 0.0


def judge(requests: Sequence[Request], names: Sequence[str], slo: SLO, seconds: float, preemptions: int) -> Verdict:
    """`names` are the length classes'."""
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
    """Several seeds' as one."""
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
