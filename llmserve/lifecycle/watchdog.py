"""Detects that a constrained request makes the engine's steps slow, and ends that request.

The supervisor only detects an engine that makes no step. A constraint can make each step take
seconds for all requests, because the engine computes the allowed tokens inside its step. Slow steps
alone prove nothing: a long prompt causes them too. Therefore the engine is asked which of its
constrained requests cost that much, and only those are ended.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable

import anyio
import attrs

from llmserve.admission import Refusal
from llmserve.admission.retry_after import RETRY_AFTER
from llmserve.engine import Engine, EngineStatistics
from llmserve.errors import InvalidRequest, LLMServeError, Unavailable
from llmserve.lifecycle.open_request import OpenRequest
from llmserve.structured import FIELD

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
# The mean covers `WINDOW_SECONDS`, and is used only after `MIN_SECONDS` of work.
WINDOW_SECONDS = 5.0
MIN_SECONDS = 3.0
# A step is slow if the mean step takes `FACTOR` times as long as usual, and at least
# `FLOOR_SECONDS`. A step of a small model takes 3 ms on a GPU and 20 ms on two cores. A step full
# of prompt tokens takes less than a second on most GPUs.
FLOOR_SECONDS = 0.2
FACTOR = 4.0
# Weight of a new mean in the usual step time, once a second: half of it is forgotten after a
# minute.
WEIGHT = 0.0115
# After an ejection the step in progress has this long to end. A shorter time would treat a long
# prompt's step as a stall.
STUCK_SECONDS = 10.0


@attrs.define
class StepPace:
    """The mean time of the last steps and the usual time, in seconds; None without enough data."""

    usual: float | None = None
    _seen: deque[tuple[float, EngineStatistics]] = attrs.field(factory=deque, init=False)
    # The time at which the last step was seen to have ended.
    _stepped: float = 0.0

    def look(self, now: float, statistics: EngineStatistics, *, busy: bool) -> float | None:
        """Add the engine's figures, about once a second, and return the mean."""
        # If this process stood still, or the engine had nothing to do, the earlier figures say
        # nothing.
        if self._seen and (not busy or now - self._seen[-1][0] > WINDOW_SECONDS):
            self._seen.clear()
        if not self._seen or statistics.steps != self._seen[-1][1].steps:
            self._stepped = now
        if busy:
            self._seen.append((now, statistics))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()
        return self._mean(now)

    def _mean(self, now: float) -> float | None:
        if not self._seen:
            return None
        (_, first), (_, last) = self._seen[0], self._seen[-1]
        steps, seconds = last.busy_steps - first.busy_steps, last.busy_seconds - first.busy_seconds
        # The step in progress counts too, because it may take long.
        seconds += now - self._stepped
        return seconds / max(1, steps) if seconds >= MIN_SECONDS else None

    def is_slow(self, mean: float) -> bool:
        return mean > max(FLOOR_SECONDS, FACTOR * (self.usual or 0.0))

    def learn(self, mean: float) -> None:
        """Include the mean in the usual time, because no constraint caused it."""
        self.usual = mean if self.usual is None else self.usual + WEIGHT * (mean - self.usual)

    def forget(self) -> None:
        """Start a new window."""
        self._seen.clear()


class Watchdog:
    """Watches the engine of one manager.

    `hurry` makes the supervisor wait only the given number of seconds for the next step.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], float],
        open_requests: Iterable[OpenRequest],
        hurry: Callable[[float], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._open_requests = open_requests
        self._hurry = hurry
        self.pace = StepPace()
        # The mean step time in seconds that caused the last ejection, until steps are quick again;
        # and the time at which the wait for that ends.
        self.slow: float | None = None
        self._until = 0.0
        # The engine's step count at the ejection.
        self._steps = 0

    def check(self) -> None:
        """Raise Unavailable while the engine makes hardly any progress."""
        if self.slow is not None:
            words = f"a step of the engine takes {self.slow:.1f} s because of a constrained request, which is being ended"
            raise Unavailable(words, retry_after=RETRY_AFTER[Refusal.SLOW], reason=Refusal.SLOW)

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await anyio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except LLMServeError as error:
                # The engine has died, or cannot tell now. The supervisor handles a death; the next
                # look may succeed.
                logger.warning("slow steps cannot be explained: %s", error)
            except Exception:
                # A failure of this check must not end the manager.
                logger.exception("checking the engine's steps failed")

    async def _look(self) -> None:
        inside = {
            open_request.request.request_id: open_request
            for open_request in self._open_requests
            if open_request.state.in_engine and not open_request.stream.ended
        }
        now = self._clock()
        statistics = self._engine.statistics()
        mean = self.pace.look(now, statistics, busy=bool(inside))
        # Nothing is known about an engine that makes no more steps until it has been killed.
        waited = now >= self._until and statistics.steps != self._steps
        if not inside or waited or (mean is not None and not self.pace.is_slow(mean)):
            self.slow = None
        if mean is None:
            return
        if not any(open_request.constraint is not None for open_request in inside.values()):
            if self.slow is None:
                self.pace.learn(mean)
        elif self.pace.is_slow(mean):
            await self._explain(mean, inside)

    async def _explain(self, mean: float, inside: dict[str, OpenRequest]) -> None:
        suspects = [inside[name] for name in await self._engine.suspects(mean) if name in inside]
        guilty = [open_request for open_request in suspects if not open_request.stream.ended]
        self.pace.forget()
        if not guilty:
            self.pace.learn(mean)
            return
        self.slow, self._until, self._steps = mean, self._clock() + STUCK_SECONDS, self._engine.statistics().steps
        for open_request in guilty:
            eject(open_request, mean)
        self._hurry(STUCK_SECONDS)


def eject(open_request: OpenRequest, mean: float) -> None:
    """End a request that delays the tokens of all requests. The abort in the engine follows."""
    constraint = open_request.constraint
    assert constraint is not None
    field = FIELD if constraint is open_request.request.sampling.structured_outputs else "tools"
    digest = hashlib.sha256(constraint.spec.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    logger.warning(
        "ejected request %s of tenant %s after %d tokens: a step takes %.2f s on average because of its %s (sha256 %s)",
        open_request.request.request_id,
        open_request.request.tenant,
        open_request.timeline.completion_tokens,
        mean,
        constraint.kind,
        digest,
    )
    open_request.stream.fail(InvalidRequest(f"{field}: this {constraint.kind} takes too long at each token; write a simpler one", field))
