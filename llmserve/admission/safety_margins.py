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
    MIN_RATIOS = 64
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
        if self._fresh >= 16 and len(self._ratios) >= self.MIN_RATIOS:
            self._fresh = 0
            ordered = sorted(self._ratios)
            worst = ordered[min(len(ordered) - 1, int(self.SHARE * len(ordered)))]
            self.margin = min(max(1 / worst, self.LOWEST), self.HIGHEST)


@attrs.define
class Reserve:
    """What share of a long prompt to keep room for, 0 to 1, whoever is next.

    Gates that open by size let small ones through for as long as there are any, and a long one waits in vain behind them. So whenever
    somebody has waited in vain, the gates are kept as tight as for a larger part of a long prompt, and as others start they are
    eased. In equilibrium one in six hundred waits in vain; without it, up to a tenth of the long ones do.
    """

    share: float = 0.0
    TIGHTER = 0.25
    EASED = 0.0004

    def on_timeout(self) -> None:
        self.share = min(1.0, self.share + self.TIGHTER)

    def started(self) -> None:
        self.share *= 1 - self.EASED


@attrs.define
class ErrorBudget:
    """How many may be late: below capacity, a lump of requests is better served late than refused. One in a thousand of those that were
    served, saved up to sixteen."""

    left: float = 0.0
    MAX_LEFT = 16.0
    SHARE = 0.001

    def earn(self) -> None:
        self.left = min(self.MAX_LEFT, self.left + self.SHARE)

    def spend(self) -> bool:
        """False if there is none left."""
        if self.left < 1:
            return False
        self.left -= 1
        return True


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
