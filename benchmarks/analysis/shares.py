"""Compares the shares of refused and failed requests between two runs. Pure.

The interval is Newcombe's for the difference of two shares. With many loads one of many 95 %
intervals misses by chance, so all shares of a comparison hold together with 95 % (Bonferroni).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

import attrs

from benchmarks.analysis.outcomes import failed, refused
from benchmarks.analysis.summary import Summary

CONFIDENCE = 0.95
# A smaller difference is none, however many requests show it.
MIN_DIFFERENCE = 0.01


@attrs.frozen
class Share:
    """A share of B's requests minus that of A's, with its interval; a smaller one is better."""

    load: str
    figure: str
    a: float
    b: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def regressed(self) -> bool:
        return self.difference > MIN_DIFFERENCE and self.low > 0

    @property
    def improved(self) -> bool:
        return -self.difference > MIN_DIFFERENCE and self.high < 0


FIGURES: dict[str, Callable[[Summary], int]] = {"refused": refused, "failed": failed}


def shares(a: Mapping[str, Sequence[Summary]], b: Mapping[str, Sequence[Summary]]) -> list[Share]:
    """Compare the shares of all loads of both runs; a share that is 0 in both is left out."""
    counted = []
    for load in [load for load in a if load in b]:
        for name, count in FIGURES.items():
            sides = [(sum(count(one) for one in side[load]), sum(one.requests for one in side[load])) for side in (a, b)]
            if any(hits for hits, _ in sides) and all(total for _, total in sides):
                counted.append((load, name, sides))
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(1, len(counted)))
    return [_share(load, name, sides, z) for load, name, sides in counted]


def _share(load: str, name: str, sides: Sequence[tuple[int, int]], z: float) -> Share:
    (one, (low_a, high_a)), (other, (low_b, high_b)) = ((hits / total, wilson(hits / total, total, z)) for hits, total in sides)
    low = other - one - math.hypot(other - low_b, high_a - one)
    high = other - one + math.hypot(high_b - other, one - low_a)
    return Share(load, name, one, other, low, high)


def wilson(share: float, count: float, z: float) -> tuple[float, float]:
    """Return Wilson's bounds of a share of `count` independent outcomes, `z` standard errors from it."""
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return (middle - spread) / (1 + z * z / count), (middle + spread) / (1 + z * z / count)


def table(found: Sequence[Share]) -> str:
    """Return a Markdown table with one line per share."""
    lines = ["| load | share of the requests | A | B | B - A | 95 % interval of all shares | |", "|---|---|---|---|---|---|---|"]
    for one in found:
        word = "regression" if one.regressed else "improvement" if one.improved else ""
        values = f"{one.a:.1%} | {one.b:.1%} | {one.difference * 100:+.1f} | {one.low * 100:+.1f} to {one.high * 100:+.1f} points"
        lines.append(f"| {one.load} | {one.figure} | {values} | {word} |")
    return "\n".join(lines)
