"""Safety margins below the SLO, learned from how far single requests deviate from the mean."""

from collections import deque

import attrs

from llmserve.admission.prediction import QueueState


@attrs.define
class Spread:
    """The share of the target time per token that the mean step may take.

    With it hardly any request exceeds the target. The time per token of each request is compared
    with the bound, but only for requests that lived while the bound held other requests back.
    Otherwise the load was light, or the engine had suddenly become slower. Neither shows how
    requests differ from the mean. A margin that learns from them winds up, and takes minutes to
    recover.
    """

    margin: float = 0.9
    LOWEST = 0.6
    HIGHEST = 1.0
    # Three in a thousand may miss the target: a third of the one in a hundred that an SLO usually
    # allows.
    SHARE = 0.997
    MIN_RATIOS = 64
    # Above this multiple of the bound, the engine itself has become slower.
    SHOCK = 1.2

    _ratios: deque[float] = attrs.field(factory=lambda: deque(maxlen=512))
    _fresh: int = 0
    _bound: float = float("-inf")
    _shock: float = float("-inf")

    def bound(self, now: float) -> None:
        """Note that the bound holds a ticket."""
        self._bound = now

    def watch(self, level: float, now: float) -> None:
        """Note the mean step's share of the target."""
        if level > self.SHOCK * self.margin:
            self._shock = now

    def ignore(self, until: float) -> None:
        """Ignore the requests whose first token came before this time."""
        self._shock = until

    def add(self, level: float, since: float) -> None:
        """Add a request that left; its tokens took `level` of the target each, from `since` on."""
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
    """The share of a long prompt, 0 to 1, for which room is kept regardless of the next ticket.

    Gates that open by size let small tickets pass, and a long one behind them waits until it is
    refused. After each such timeout this share grows, and with each start it shrinks. In
    equilibrium one in six hundred times out; without it, up to a tenth of the long tickets do.
    """

    share: float = 0.0
    TIGHTER = 0.25
    EASED = 0.0004

    def on_timeout(self) -> None:
        self.share = min(1.0, self.share + self.TIGHTER)

    def started(self) -> None:
        self.share *= 1 - self.EASED


@attrs.define
class StandingQueue:
    """The queue of a lasting overload: short, but never empty.

    With a queue as long as the whole slack, every request would only wait, until the overload ends
    (Nichols and Jacobson, CoDel: a good queue empties). With a queue that runs empty, the engine
    idles although requests were refused. Arrivals decide which length is enough, so this class
    learns it: a start without a wait lengthens the queue, and a start after a wait shortens it.

    Attributes:
        share: The share of the slack that a tenant's queue may take.
        for_room: How many of the holds at the head, 0 to 1, are for room: the larger a request, the
            longer it waits. Other holds pass in the same time for all.
    """

    LOWEST = 0.25
    LONGER, SHORTER = 0.25, 0.01
    # Weight of one hold in `for_room`.
    FADE = 1 / 64

    share: float = LOWEST
    for_room: float = 1.0

    def started(self, *, waited: bool, pressure: float) -> None:
        """Note a start; `pressure` is the demand divided by the service rate."""
        if waited:
            self.share = max(self.LOWEST, self.share * (1 - self.SHORTER))
        elif pressure > 1:
            self.share = min(1.0, self.share + self.LONGER)

    def held(self, constraint: str) -> None:
        """Note which constraint holds the head of the queue."""
        self.for_room += ((constraint in ("kv", "tpot")) - self.for_room) * self.FADE

    def patience(self, slack: float, queue: QueueState, step: float) -> float:
        """Return the longest predicted wait in seconds, out of the `slack` before the TTFT target.

        `step` is the duration of a step. One interval between two tickets is always allowed.
        """
        if queue.own_pressure < 1:
            # The tenant's turn comes soon, however long the other tenants' queues are.
            return max(slack, 3 * queue.interval)
        # If demand is little above capacity, a short queue would run empty.
        part = max(self.share, 1 / max(queue.pressure, 1.0))
        return min(slack, max(part * slack, 3 * step, 2 * queue.interval))


@attrs.define
class ErrorBudget:
    """How many tickets may be served late: one in a thousand of those served, saved up to sixteen.

    Below capacity it is better to serve a burst late than to refuse it.
    """

    left: float = 0.0
    MAX_LEFT = 16.0
    SHARE = 0.001

    def earn(self) -> None:
        self.left = min(self.MAX_LEFT, self.left + self.SHARE)

    def spend(self) -> bool:
        """Use one unit; return False if none is left."""
        if self.left < 1:
            return False
        self.left -= 1
        return True


@attrs.define
class Preemptions:
    """The share of the KV cache that forecasts may fill without preemptions.

    Forecasts of long answers are too high: while answers are running that will end early, all are
    expected to grow. The share may therefore exceed 1.
    """

    margin: float = 0.97
    LOWEST, HIGHEST = 0.8, 1.3
    # A preemption costs as much as twenty seconds with a full cache earn.
    LOWER, HIGHER = 0.02, 0.001
    # From this use on, the cache is full enough to show that there is room.
    FULL = 0.7
    _since: float | None = None

    def record(self, count: int, usage: float, now: float) -> None:
        passed = 0.0 if self._since is None else now - self._since
        self._since = now
        if count > 0:
            self.margin = max(self.LOWEST, self.margin - self.LOWER)
        elif usage > self.FULL or usage > self.FULL * self.margin:
            self.margin = min(self.HIGHEST, self.margin + self.HIGHER * passed)
