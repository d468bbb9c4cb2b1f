"""Chooses the sequences of each step: continuous batching, chunked prefill and preemption."""

from collections import deque

import anyio
import attrs

from llmserve.engine import EngineTimings, Sink
from llmserve.engines.simulated.paging import BlockPool
from llmserve.engines.simulated.text import StopWatcher, Writer
from llmserve.pooling.requests import Pooling
from llmserve.request import Sampling


@attrs.define(eq=False, kw_only=True)
class Sequence:
    """One request in the engine. Its first `computed` tokens have keys and values in `blocks`."""

    id: str
    tokens: list[int]
    prompt_length: int
    sampling: Sampling
    priority: int
    sink: Sink
    writer: Writer
    stops: StopWatcher
    timings: EngineTimings
    pooling: Pooling | None = None
    blocks: list[int] = attrs.field(factory=list)
    computed: int = 0

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def grammar_tokens(self) -> int:
        constraint = self.sampling.structured_outputs
        return self.generated if constraint is not None and constraint.kind == "grammar" else 0


class Scheduler:
    """The sequences that run and wait, and the cache's blocks that they hold.

    A step computes at most `max_tokens` for at most `max_sequences`.
    """

    def __init__(self, pool: BlockPool, max_sequences: int, max_tokens: int) -> None:
        self.pool = pool
        self._max_sequences = max_sequences
        self._max_tokens = max_tokens
        # Maximum number of tokens of a step in which a sequence is answered.
        self.step_tokens = max_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = self.queries = self.hits = 0

    def reset(self, pool: BlockPool) -> None:
        """Begin again with an empty cache and no sequences; the counters continue."""
        self.pool = pool
        self.waiting.clear()
        self.running.clear()

    def schedule(self) -> list[tuple[Sequence, int]]:
        """Choose sequences and their numbers of tokens for this step.

        Running sequences come first, the oldest first, then new ones by priority.
        """
        work: list[tuple[Sequence, int]] = []
        answering = any(sequence.computed >= sequence.prompt_length for sequence in self.running)
        budget = min(self._max_tokens, max(self.step_tokens, self._max_sequences)) if answering else self._max_tokens
        for sequence in list(self.running):
            count = min(budget, len(sequence.tokens) - sequence.computed)
            if count and sequence in self.running and self._make_room(sequence, sequence.computed + count):
                work.append((sequence, count))
                budget -= count
        work = [(sequence, count) for sequence, count in work if sequence in self.running]
        while self.waiting and budget and len(self.running) < self._max_sequences:
            sequence = min(self.waiting, key=lambda waiting: waiting.priority)
            if not self._begin(sequence):
                break
            count = min(budget, len(sequence.tokens) - sequence.computed)
            work.append((sequence, count))
            budget -= count
        return work

    def _begin(self, sequence: Sequence) -> bool:
        """Take a sequence from the queue if the cache has room for all its current tokens."""
        shared = self.pool.take_prefix(sequence.tokens)
        fresh = self.pool.take(self.pool.blocks_for(len(sequence.tokens)) - len(shared))
        if fresh is None:
            self.pool.release(shared)
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.blocks = shared + fresh
        sequence.computed = len(shared) * self.pool.block_size
        self.queries += len(sequence.tokens)
        self.hits += sequence.computed
        if sequence.timings.scheduled is None:
            sequence.timings.scheduled = anyio.current_time()
            sequence.timings.cached_tokens = sequence.computed
        return True

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Get blocks for `tokens`; while the cache is full, preempt the youngest sequence.

        Return False if that sequence is this one.
        """
        missing = self.pool.blocks_for(tokens) - len(sequence.blocks)
        while (fresh := self.pool.take(missing) if missing > 0 else []) is None:
            victim = self.running[-1]
            self.running.remove(victim)
            self.pool.release(victim.blocks)
            victim.blocks, victim.computed = [], 0
            self.waiting.appendleft(victim)
            self.preemptions += 1
            if victim is sequence:
                return False
        sequence.blocks += fresh
        return True

    def drop(self, request_id: str) -> None:
        """Remove a request's sequence and free its blocks. Idempotent."""
        for sequences in (self.running, self.waiting):
            for sequence in [sequence for sequence in sequences if sequence.id == request_id]:
                sequences.remove(sequence)
                self.pool.release(sequence.blocks)
                sequence.blocks = []
