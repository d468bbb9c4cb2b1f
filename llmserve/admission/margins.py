"""How far from a promise's edge to stay, learnt from how far single requests fall from the mean."""

from collections import deque

import attrs


@attrs.define
class Spread:
    """What share of the promised time per token the mean step may take, so that hardly any request exceeds it.

    Every request's time per token is taken relative to the bound that was held, but only of those that lived while that bound
    held others back. Otherwise the load would have been light, or suddenly the engine slower, and neither says anything about how
    requests differ from the mean: a margin that learnt from those winds up, and takes minutes to come back.
    """

    margin: float = 0.9
    LOWEST = 0.6
    HIGHEST = 1.0
    # Three in a thousand may miss: a third of the one in a hundred that an SLO usually leaves.
    SHARE = 0.997
    ENOUGH = 64
    # So much above the bound it is the engine that has become slower.
    SHOCK = 1.2

    _ratios: deque[float] = attrs.field(factory=lambda: deque(maxlen=512))
    _fresh: int = 0
    _bound: float = float("-inf")
    _shock: float = float("-inf")

    def bound(self, now: float) -> None:
        """The bound holds somebody back."""
        self._bound = now

    def watch(self, level: float, now: float) -> None:
        """The mean step's share of the promise."""
        if level > self.SHOCK * self.margin:
            self._shock = now

    def add(self, level: float, since: float) -> None:
        """One has left whose tokens took `level` of the promise each, from `since` on."""
        if self._bound < since or self._shock >= since:
            return
        self._ratios.append(level / self.margin)
        self._fresh += 1
        if self._fresh >= 16 and len(self._ratios) >= self.ENOUGH:
            self._fresh = 0
            ordered = sorted(self._ratios)
            worst = ordered[min(len(ordered) - 1, int(self.SHARE * len(ordered)))]
            self.margin = min(max(1 / worst, self.LOWEST), self.HIGHEST)


@attrs.define
class Preemptions:
    """What share of the KV cache may be planned to be full, so that nothing has to be computed twice."""

    margin: float = 0.97
    LOWEST = 0.8
    HIGHEST = 0.97
    _since: float | None = None

    def record(self, count: int, usage: float, now: float) -> None:
        passed = 0.0 if self._since is None else now - self._since
        self._since = now
        if count > 0:
            self.margin = max(self.LOWEST, self.margin - 0.01)
        elif usage > 0.8 * self.margin:
            # Only a cache that was nearly full and held says that there is room.
            self.margin = min(self.HIGHEST, self.margin + 0.001 * passed)
