"""A vLLM-like engine in virtual time that costs microseconds per step, regardless of the batch.

`llmserve.engines.simulated.engine` writes every token and satisfies the engine's protocol. This
engine only says when tokens come, so that hours of overload can be simulated. It batches
continuously, prefills in chunks beside the decoding, caches prefixes by blocks, preempts by recomputation and
schedules a step ahead, and its steps are noisy. Its step law is not the line that the controller
fits (`benchmarks.overload.laws`).
"""

import random
from collections import OrderedDict, deque
from collections.abc import Iterable

import attrs

from benchmarks.overload.laws import Law
from llmserve.admission import EngineSample

BLOCK = 16


@attrs.define(eq=False, slots=True)
class Sequence:
    """One request in the engine.

    Attributes:
        blocks: Keys and tokens of the blocks at the prompt's beginning that other requests may share.
        priority: Sequences with a smaller one start first, as with vLLM's priority scheduler.
        fresh: Prompt tokens still to be prefilled.
        held: Tokens in the cache for this request alone.
        begun: Step from which the request decodes.
        ends: Step with which the request ends.
    """

    owner: object
    prompt: int
    output: int
    blocks: tuple[tuple[int, int], ...] = ()
    priority: int = 0
    fresh: int = 0
    held: int = 0
    made: int = 0
    begun: int = 0
    ends: int = 0
    decoding: bool = False
    computed: int = 0


@attrs.frozen(kw_only=True)
class EngineSize:
    """The engine's limits; sizes in tokens."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    kv_tokens: int = 300_000


class StepEngine:
    """Simulates steps: `start()` begins one, `finish()` ends it and returns whose tokens came."""

    def __init__(self, size: EngineSize, law: Law, seed: int, number: int = 0) -> None:
        self.number = number
        self.size = size
        # Maximum number of tokens in a step while a sequence decodes.
        self.step_tokens = size.max_num_batched_tokens
        self.law = law
        self.slowness = 1.0
        self._random = random.Random(seed)
        self._submitted: deque[Sequence] = deque()
        self._waiting: deque[Sequence] = deque()
        self._prefilling: dict[Sequence, None] = {}
        self._decoding: dict[Sequence, None] = {}
        self._ends: dict[int, list[Sequence]] = {}
        self._step = 0
        self._held = 0
        # Blocks of running sequences, with the number of their users and their tokens; and those
        # that the cache keeps without users, in the order of their last use.
        self._shared: dict[int, list[int]] = {}
        self._idle_blocks: OrderedDict[int, int] = OrderedDict()
        self._idle_tokens = 0
        self._chunks: list[tuple[Sequence, int]] = []
        self._duration = 0.0
        self._followed = False
        self._steps = 0
        self._busy = 0.0
        self.preemptions = self.prompt_tokens = self.cached_tokens = self.generation_tokens = 0

    @property
    def busy(self) -> bool:
        return bool(self._submitted or self._waiting or self._prefilling or self._decoding)

    @property
    def queued(self) -> tuple[int, int]:
        """Number of requests that wait in the engine, and of prompt tokens not yet in the cache."""
        tokens = sum(one.prompt for one in (*self._submitted, *self._waiting)) + sum(one.prompt for one in self._prefilling)
        return len(self._submitted) + len(self._waiting), tokens

    def submit(self, sequence: Sequence) -> None:
        self._submitted.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        for queue in (self._submitted, self._waiting):
            if sequence in queue:
                queue.remove(sequence)
                return
        if sequence in self._prefilling or sequence in self._decoding:
            self._leave(sequence)

    def start(self) -> float:
        """Choose what runs in the next step; returns its duration in seconds."""
        size = self.size
        while self._decoding and self._held + len(self._decoding) + self._slack() > size.kv_tokens:
            self._preempt()
        decoding = len(self._decoding)
        budget = (self.step_tokens if decoding else size.max_num_batched_tokens) - decoding
        chunks = []
        for sequence in self._prefilling:
            if budget <= 0:
                break
            count = min(budget, sequence.fresh)
            chunks.append((sequence, count))
            budget -= count
        while self._waiting and budget > 0 and decoding + len(self._prefilling) < size.max_num_seqs:
            sequence = self._waiting[0]
            if not self._begin(sequence):
                break
            self._waiting.popleft()
            count = min(budget, sequence.fresh)
            chunks.append((sequence, count))
            budget -= count
        # The next step is scheduled while a step runs, so a request that arrives then joins the
        # step after the next.
        self._waiting.extend(self._submitted)
        if any(one.priority for one in self._submitted):
            self._waiting = deque(sorted(self._waiting, key=lambda one: one.priority))
        self._submitted.clear()
        self._chunks = chunks
        prefill = sum(count for _, count in chunks)
        attended = sum(count * (one.prompt - one.fresh + count / 2) for one, count in chunks)
        self._duration = self.law.seconds(prefill, attended, decoding, self._held) * self.slowness
        self._duration *= self._random.lognormvariate(0.0, self.law.noise)
        if self._random.random() < self.law.hiccup_chance:
            self._duration += self.law.hiccup_seconds
        return self._duration

    def finish(self) -> tuple[list[Sequence], list[Sequence]]:
        """End the step; returns the sequences with a first token, and the complete ones."""
        first: list[Sequence] = []
        complete: list[Sequence] = []
        self._step += 1
        self._held += len(self._decoding)
        self.generation_tokens += len(self._decoding)
        for sequence in self._ends.pop(self._step, ()):
            if sequence.decoding and sequence.ends == self._step:
                sequence.made = sequence.output
                self._leave(sequence)
                complete.append(sequence)
        for sequence, count in self._chunks:
            if sequence not in self._prefilling:
                continue
            sequence.fresh -= count
            sequence.computed += count
            if sequence.fresh == 0:
                self._decode(sequence, first, complete)
        if self._followed:
            self._steps += 1
            self._busy += self._duration
        self._followed = self.busy
        return first, complete

    def metrics_snapshot(self) -> EngineSample:
        return EngineSample(
            engine=self.number,
            steps=self._steps,
            busy_seconds=self._busy,
            running=len(self._decoding) + len(self._prefilling),
            waiting=len(self._waiting),
            kv_usage=min(1.0, (self._held + self._slack()) / self.size.kv_tokens),
            kv_tokens=self.size.kv_tokens,
            preemptions=self.preemptions,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            generation_tokens=self.generation_tokens,
        )

    def _decode(self, sequence: Sequence, first: list[Sequence], complete: list[Sequence]) -> None:
        del self._prefilling[sequence]
        self.prompt_tokens += sequence.prompt
        self.generation_tokens += 1
        if sequence.made == 0:
            first.append(sequence)
        sequence.made += 1
        self._decoding[sequence] = None
        sequence.decoding, sequence.begun = True, self._step
        sequence.held += 1
        self._held += 1
        if sequence.made >= sequence.output:
            self._leave(sequence)
            complete.append(sequence)
            return
        sequence.ends = self._step + sequence.output - sequence.made
        self._ends.setdefault(sequence.ends, []).append(sequence)

    def cached(self, keys: Iterable[int]) -> int:
        """Return how many tokens the cache has of a prompt that begins with these blocks."""
        total = 0
        for key in keys:
            tokens = self._shared[key][1] if key in self._shared else self._idle_blocks.get(key)
            if tokens is None:
                break
            total += tokens
        return total

    def _begin(self, sequence: Sequence) -> bool:
        """Start a sequence if the cache has room for its prompt and its answer so far."""
        whole = sequence.prompt + sequence.made
        in_use = sum(tokens for key, tokens in sequence.blocks if key in self._shared)
        if self._held + whole - in_use + self._slack() + BLOCK > self.size.kv_tokens and (self._decoding or self._prefilling):
            return False
        # The engine computes the last token in any case.
        found = min(self.cached(key for key, _ in sequence.blocks), whole - 1)
        self.cached_tokens += found
        sequence.fresh = whole - found
        sequence.held = whole - sum(tokens for _, tokens in sequence.blocks)
        self._held += whole - in_use
        for key, tokens in sequence.blocks:
            self._idle_tokens -= self._idle_blocks.pop(key, 0)
            self._shared.setdefault(key, [0, tokens])[0] += 1
        while self._idle_blocks and self._held + self._idle_tokens + self._slack() > self.size.kv_tokens:
            self._idle_tokens -= self._idle_blocks.popitem(last=False)[1]
        self._prefilling[sequence] = None
        return True

    def _leave(self, sequence: Sequence) -> None:
        self._prefilling.pop(sequence, None)
        if sequence.decoding:
            del self._decoding[sequence]
            sequence.made += 0 if sequence.made >= sequence.output else self._step - sequence.begun
            self._held -= self._step - sequence.begun
            sequence.decoding = False
        self._held -= sequence.held
        sequence.held = 0
        # The end of a prompt is given up first.
        for key, tokens in reversed(sequence.blocks):
            users = self._shared[key]
            users[0] -= 1
            if not users[0]:
                del self._shared[key]
                self._held -= tokens
                self._idle_blocks[key] = tokens
                self._idle_tokens += tokens

    def _preempt(self) -> None:
        """Move the newest sequence of the last priority to the head of the queue; its answer joins its prompt."""
        sequence = max(reversed(self._decoding), key=lambda one: one.priority)
        self._leave(sequence)
        self._waiting.appendleft(sequence)
        self.preemptions += 1

    def _slack(self) -> int:
        """Return half a block per sequence, because each last block is on average half empty."""
        return BLOCK // 2 * (len(self._decoding) + len(self._prefilling))
