"""Usage that controllers of the same tenants exchange."""

from collections.abc import Mapping
from typing import Self, TypeVar

import attrs

Number = TypeVar("Number", int, float)


@attrs.frozen(kw_only=True)
class UsageDelta:
    """Usage of one controller, or of several in total, by tenant.

    Attributes:
        costs: Cost served since the last tally; negative where the tenant was charged too much
            before.
        tokens: Tokens used since the last tally, only of tenants with a limit per minute; may be
            negative too.
        open: Number of open requests now, only of tenants with a limit on them.
    """

    costs: Mapping[str, float] = attrs.field(factory=dict)
    tokens: Mapping[str, float] = attrs.field(factory=dict)
    open: Mapping[str, int] = attrs.field(factory=dict)

    def then(self, later: "UsageDelta") -> "UsageDelta":
        """Merge this delta with a later one of the same controller."""
        return UsageDelta(costs=added(self.costs, later.costs), tokens=added(self.tokens, later.tokens), open=later.open)

    def largest(self, count: int) -> Self:
        """Keep only the largest costs and tokens, which accumulate until they are fetched."""
        return attrs.evolve(self, costs=_largest(self.costs, count), tokens=_largest(self.tokens, count))


def added(one: Mapping[str, Number], other: Mapping[str, Number]) -> Mapping[str, Number]:
    """Add two mappings by tenant."""
    return {**one, **{name: one[name] + value if name in one else value for name, value in other.items()}}


def _largest(figures: Mapping[str, float], count: int) -> Mapping[str, float]:
    if len(figures) <= count:
        return figures
    return dict(sorted(figures.items(), key=lambda item: -abs(item[1]))[:count])
