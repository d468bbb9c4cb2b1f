"""Says how many lines of batches may start, so that they run only in what other requests leave.

It counts and never waits. A line may start while nothing else waits for a slot, while the engine's
batch keeps some slots free, and while the prompts of lines take a small part of a step. When other
requests wait for slots that lines hold, the lines that have generated least must stop.
"""

import math
from collections.abc import Collection

import attrs

from llmserve import EngineManager, State, Timeline

# An eighth of the engine's batch stays free for other requests, which then start at once. It is also
# the part of a step's tokens that the prompts of lines may take.
SHARE = 8
# Tokens of a step, where the engine does not report its maximum.
STEP_TOKENS = 2048
# All lines must stop.
ALL = -(2**31)
# Bytes of a body for each token of its prompt, until the prompt is tokenized.
TOKEN_BYTES = 4


def expected_tokens(body: bytes) -> int:
    """Return about how many tokens the prompt of a line with this body has."""
    return len(body) // TOKEN_BYTES


@attrs.define(eq=False)
class Started:
    """A line that has started: the expected tokens of its prompt, and the timelines of its sequences."""

    tokens: int
    timelines: list[Timeline] = attrs.field(factory=list)

    @property
    def generated(self) -> int:
        return sum(timeline.completion_tokens for timeline in self.timelines)

    @property
    def pending(self) -> int:
        """Prompt tokens without a first token."""
        if not self.timelines:
            return self.tokens
        return sum(one.prompt_tokens or self.tokens for one in self.timelines if one.first_token is None and one.outcome is None)

    def count(self, *, admitted: bool) -> int:
        """Return how many of its sequences are open, and have been admitted or not."""
        return sum((one.admitted is not None) is admitted and one.outcome is None for one in self.timelines)


class Room:
    """The room for lines beside a manager's other requests.

    Args:
        manager: the manager of the engine.
        alone: whether there are no other requests, so that no room is left for them.
    """

    def __init__(self, manager: EngineManager, *, alone: bool = False) -> None:
        self._manager = manager
        self._alone = alone
        # Sequences that admission takes; lower after a refusal, and then one more for each answer.
        self._taken = math.inf
        # Sequences that may run when a line starts, at the last look.
        self._most = math.inf

    def refused(self, started: Collection[Started]) -> None:
        """Note that admission has refused a line."""
        self._taken = max(1, sum(one.count(admitted=True) for one in started))

    def answered(self) -> None:
        """Note that a line has its answer."""
        self._taken += 1

    def is_too_large(self, started: Started) -> bool:
        """Return whether a line has more choices than ever fit beside others. Once it runs, it is not stopped."""
        return len(started.timelines) > self._most

    def look(self, started: Collection[Started], tokens: int) -> int:
        """Return 1 if a line with a prompt of about `tokens` tokens may start, 0 if not, and -n if n sequences of lines must stop."""
        found = self._manager.statistics()
        if found.state is State.FAILED:
            # The line fails at once, and with it the batch.
            return 1
        if found.state is not State.READY:
            return ALL if found.state in (State.DRAINING, State.STOPPED) else 0
        waiting = sum(one.count(admitted=False) for one in started)
        running = sum(one.count(admitted=True) for one in started)
        batch, free = self._batch(sum(engine.up for engine in found.engines), found.admission.limit if found.admission else None)
        self._most = min(batch - free, self._taken)
        others = max(found.running - running, 0) + max(found.waiting - waiting, 0)
        # Others wait for slots, or will before long.
        missing = others + running - (batch - free // 2)
        if others and running and missing > 0:
            return -min(missing, running)
        if found.running == 0 and not started:
            return 1
        # A line that has not reached admission yet takes one slot.
        coming = sum(not one.timelines for one in started)
        if max(found.running, running) + waiting + coming >= self._most:
            return 0
        pending = sum(one.pending for one in started)
        return int(pending == 0 or pending + tokens <= self._prompt_tokens)

    def _batch(self, engines: int, limit: int | None) -> tuple[int, int]:
        """Return how many sequences the engines batch, and how many slots of them stay free."""
        size = self._manager.info.max_num_seqs * max(1, engines)
        if self._alone:
            size += size // SHARE
        if limit is not None:
            size = min(size, limit)
        return size, 0 if self._alone or size == 1 else max(1, size // SHARE)

    @property
    def _prompt_tokens(self) -> float:
        return (self._manager.info.max_num_batched_tokens or STEP_TOKENS) / (1 if self._alone else SHARE)
