"""What controllers that serve the same tenants tell each other."""

from collections.abc import Mapping
from typing import Self, TypeVar

import attrs

Number = TypeVar("Number", int, float)


@attrs.frozen(kw_only=True)
class UsageDelta:
    """Of one controller, or of several together, by tenant.

    Attributes:
        costs: of what it was served since the last tally. Negative where it was charged too much before.
        tokens: that it has taken of its tokens a minute since then; negative likewise. Of those alone that have such a limit.
        open: its requests now, of those alone that may have only so many.
    """

    costs: Mapping[str, float] = attrs.field(factory=dict)
    tokens: Mapping[str, float] = attrs.field(factory=dict)
    open: Mapping[str, int] = attrs.field(factory=dict)

    def then(self, later: "UsageDelta") -> "UsageDelta":
        """This and the same controller's next one as one."""
        return UsageDelta(costs=added(self.costs, later.costs), tokens=added(self.tokens, later.tokens), open=later.open)

    def largest(self, count: int) -> Self:
        """Of what grows until it is fetched, those tenants that have most of it."""
        return attrs.evolve(self, costs=_largest(self.costs, count), tokens=_largest(self.tokens, count))


def added(one: Mapping[str, Number], other: Mapping[str, Number]) -> Mapping[str, Number]:
    """Both together, by tenant."""
    return {**one, **{name: one[name] + value if name in one else value for name, value in other.items()}}


def _largest(figures: Mapping[str, float], count: int) -> Mapping[str, float]:
    if len(figures) <= count:
        return figures
    return dict(sorted(figures.items(), key=lambda item: -abs(item[1]))[:count])
