"""Predicts what a ticket costs on each of several engines, in seconds.

The prediction has four parts. The first is the time to the first token: that of the prompt tokens
which the engine has not computed yet, its own and those of the prompts ahead of it. The second is
the time of the answer's tokens, which grows with the number of sequences that share each step, and
the third the time that the answer takes from those. The fourth is what the computing of a prompt
costs others, which a cached beginning saves. The times of a prompt token and of a step are learned
from all engines together, and for each engine how much faster or slower it is. Lines fitted to each
engine alone would differ by chance, and the engine with the luckier line would get the requests of
all.
"""

import bisect
import math

import attrs

from llmserve.admission.pool.prefixes import PrefixIndex
from llmserve.admission.prediction import EngineSample
from llmserve.admission.regression import LinearFit
from llmserve.admission.ticket import Ticket

# Number of samples after which the first fits are made, and later ones; and the figures until the
# first one: seconds for each prompt token, and seconds that one more sequence adds to a token. Only
# their relation matters: on GPUs and CPUs one more sequence costs about as much as three prompt
# tokens.
ENOUGH, MANY = 8, 64
PROMPT_TOKEN, SEQUENCE = 2e-5, 6e-5
# What a second of the answer counts against a second until the first token: it is read while it
# comes, so a wait is worse.
ANSWER = 0.25
# One more sequence makes each token of those beside it later. What a second of their answers counts
# against a second of its own: fully, because they may be followed by others that wait. With less, a
# burst goes to the engine that computes fewer prompts, until the other one has little left to do.
BESIDE = 1 / ANSWER
# A prompt that is computed holds up the prompts behind it and the answers beside it. This is how
# many seconds of others a second of computing costs; a cached prompt saves them. All latencies of
# Mooncake's traces are about equal from 1 to 7, and worse with 0 (`python -m benchmarks routing`).
DELAYED = 3.0
# A step that computes few tokens takes as long as one with about this many. Without this, an engine
# that has all prompts cached would seem slow for each token.
SHORT = 128
# A ticket stays at its home while that costs at most this share more than elsewhere. A process gets
# a message from each engine in each step in which it has a request there, so with a home it gets
# fewer and longer ones.
STAY = 0.1
# Number of engines that are compared exactly, of those that have equally much of a prompt.
CANDIDATES = 3
# The usual ticket is the mean of about this number of tickets.
USUAL = 64
# A fit whose samples hardly differ has no slope. More work never makes an answer faster, so the
# slope is at least this part of that of the line through the origin.
LEAST = 0.1
# Engines with ratios between these count as equal, because the noise of equal engines is as large.
FAST, SLOW = 0.8, 1.25


@attrs.define
class Slope:
    """Seconds as a function of an amount of work: a line that always rises.

    `seconds` are those of one unit of work until there are enough samples.
    """

    seconds: float
    base: float = 0.0
    _fit: LinearFit = attrs.field(factory=LinearFit)
    _count: int = 0

    def add(self, work: float, seconds: float) -> bool:
        """Learn from a sample; return whether the line has changed."""
        fit = self._fit
        fit.collect(work, seconds)
        self._count += 1
        if self._count % (ENOUGH if self._count < MANY else MANY):
            return False
        fit.solve()
        self.seconds = max(fit.b, LEAST * fit.ratio)
        self.base = fit.a
        return True


@attrs.define
class Speed:
    """The seconds that one engine takes, relative to those that all engines would take.

    `factor` is the ratio that counts: 1 for engines that are about equal.
    """

    ratio: float = 1.0
    factor: float = 1.0

    def add(self, seconds: float, predicted: float) -> None:
        if predicted:
            ratio, now = self.ratio, seconds / predicted
            # A single pause says little about the engine.
            ratio += (min(2 * ratio, now) - ratio) / USUAL
            self.ratio, self.factor = ratio, 1.0 if FAST < ratio < SLOW else ratio


@attrs.define
class EngineLoad:
    """What one engine works on, as far as the router knows.

    Attributes:
        prefill, decode: The lines of all engines: seconds to a first token by the prompt tokens
            before it, and seconds of a step by its sequences.
        prefills, decodes: The engine's speed.
        running: Tickets in the engine.
        pending: Prompt tokens of the tickets without a first token, without those that were cached.
        wait: Predicted seconds until their first tokens.
        pace: Predicted seconds for each token of one more answer, its own and those of the others.
        token: Predicted seconds for each token of a prompt.
        rank: What the usual ticket would cost here.
    """

    prefill: Slope
    decode: Slope
    prefills: Speed = attrs.field(factory=Speed)
    decodes: Speed = attrs.field(factory=Speed)
    running: int = 0
    pending: float = 0.0
    wait: float = 0.0
    pace: float = 0.0
    token: float = PROMPT_TOKEN
    rank: float = 0.0

    def cost(self, fresh: float, answer: float) -> float:
        """Return the seconds of one more ticket: `fresh` tokens of a prompt to compute, and `answer` tokens."""
        return self.wait + self.token * fresh + self.pace * answer

    def update(self, prompt: float, answer: float) -> None:
        """Predict again, after something changed. The tokens are those of the usual ticket."""
        prefill, decode = self.prefill, self.decode
        self.token = token = self.prefills.factor * prefill.seconds
        self.wait = self.prefills.factor * prefill.base + token * self.pending
        self.pace = self.decodes.factor * (decode.base + decode.seconds * (1 + self.running + BESIDE * self.running))
        self.rank = self.cost(prompt, ANSWER * answer)


@attrs.define
class _Placed:
    """A ticket in an engine: its prompt tokens that are not cached, and the work ahead of it then."""

    fresh: float
    ahead: float
    running: int
    first_token: float | None = None


class Router:
    """Chooses among `engines` engines for each ticket, and learns from what becomes of it.

    Sets of engines are bits, and the engines are kept in the order of what the usual ticket would
    cost, so that a choice takes about as long among many engines as among few.

    Args:
        slots: Number of sequences that each engine computes at once; None if unknown. Further
            tickets wait in the engine, so they get another engine while one has a slot.
    """

    def __init__(self, engines: int, slots: int | None = None) -> None:
        self._slots = math.inf if slots is None else slots
        # The engines with a free slot, as bits.
        self._free = (1 << engines) - 1
        self.prefixes = PrefixIndex(engines)
        self._prefill, self._decode = Slope(PROMPT_TOKEN), Slope(SEQUENCE)
        self.loads = [EngineLoad(self._prefill, self._decode) for _ in range(engines)]
        self._ranks = [(0.0, engine) for engine in range(engines)]
        # The sum of the engines' seconds for a prompt token.
        self._token = engines * PROMPT_TOKEN
        # The last figures of each engine's steps.
        self._samples: list[EngineSample | None] = [None] * engines
        # Tokens of the usual prompt and answer.
        self._prompt = self._answer = 0.0
        self._placed: dict[Ticket, _Placed] = {}
        # The last prompt that was looked up, and who has its beginnings; until a ticket starts.
        self._looked: tuple[tuple[int, ...] | None, list[tuple[int, int]]] = None, []
        self._changed = set(range(engines))

    def best(self, ticket: Ticket, among: int) -> int:
        """Return the engine on which a ticket costs least, of a set that is not empty."""
        among = among & self._free or among
        if not among & (among - 1):
            return among.bit_length() - 1
        self._rank()
        prompt, answer = ticket.prompt_tokens, ANSWER * ticket.expected_tokens
        others = DELAYED * self._token / len(self.loads)

        def cost(engine: int, cached: int) -> float:
            return self.loads[engine].cost(prompt - cached, answer) - cached * others

        found, least, rest = 0, math.inf, among
        for holders, tokens in (*self.holders(ticket), (among, 0)):
            same = holders & rest
            rest ^= same
            more = CANDIDATES
            for _, engine in self._ranks if same else ():
                if same >> engine & 1:
                    if (seconds := cost(engine, tokens)) < least:
                        found, least = engine, seconds
                    same ^= 1 << engine
                    more -= 1
                    if not same or not more:
                        break
        home = ticket.home
        if home is None or home == found or not among >> home & 1:
            return found
        return home if cost(home, self.cached(ticket, home)) <= least + STAY * abs(least) else found

    def cached(self, ticket: Ticket, engine: int) -> int:
        """Return how many of the ticket's prompt tokens the engine's cache is expected to have."""
        for holders, tokens in self.holders(ticket):
            if holders >> engine & 1:
                return tokens
        return 0

    def holders(self, ticket: Ticket) -> list[tuple[int, int]]:
        """Return which engines have how much of the ticket's prompt, as `PrefixIndex.cached` does."""
        looked, found = self._looked
        if looked is not ticket.prefix:
            self._looked = ticket.prefix, (found := self.prefixes.cached(ticket.prefix))
        return found

    # Observations

    def emptied(self, engine: int) -> None:
        """Note that an engine is a new process, with an empty cache."""
        self.prefixes.clear(engine)
        self._looked = None, []

    def started(self, ticket: Ticket, engine: int) -> None:
        """Note that a ticket, whose `cached_tokens` are those of this engine, is there."""
        load = self.loads[engine]
        self._looked = None, []
        fresh = max(SHORT, ticket.prompt_tokens - ticket.cached_tokens)
        self._prompt += (ticket.prompt_tokens - self._prompt) / USUAL
        self._answer += (ticket.expected_tokens - self._answer) / USUAL
        self._placed[ticket] = _Placed(fresh, load.pending + fresh, load.running + 1)
        load.running += 1
        if load.running >= self._slots:
            self._free &= ~(1 << engine)
        load.pending += fresh
        self.prefixes.remember(engine, ticket.prefix, ticket.prompt_tokens + int(ticket.expected_tokens))
        self._changed.add(engine)

    def first_token(self, ticket: Ticket, engine: int, now: float) -> None:
        placed = self._placed.get(ticket)
        if placed is None or placed.first_token is not None:
            return
        placed.first_token = now
        load = self.loads[engine]
        load.pending -= placed.fresh
        if ticket.granted is not None:
            self._learn(load.prefills, self._prefill, placed.ahead, now - ticket.granted)
        self._changed.add(engine)

    def left(self, ticket: Ticket, engine: int, now: float) -> None:
        placed, load = self._placed.pop(ticket), self.loads[engine]
        load.running -= 1
        if load.running < self._slots:
            self._free |= 1 << engine
        if placed.first_token is None:
            load.pending -= placed.fresh
        elif ticket.complete and ticket.generated > 1 and self._samples[engine] is None:
            running = (placed.running + load.running + 1) / 2
            self._learn(load.decodes, self._decode, running, (now - placed.first_token) / (ticket.generated - 1))
        if not load.running:
            load.pending = 0.0
        self._changed.add(engine)

    def record(self, sample: EngineSample) -> None:
        """Learn how long a step takes by its number of sequences, from steps that computed no prompt."""
        last, self._samples[sample.engine] = self._samples[sample.engine], sample
        if last is None or not sample.running or sample.steps <= last.steps or sample.prompt_tokens != last.prompt_tokens:
            return
        seconds = (sample.busy_seconds - last.busy_seconds) / (sample.steps - last.steps)
        self._learn(self.loads[sample.engine].decodes, self._decode, sample.running, seconds)
        self._changed.add(sample.engine)

    def _learn(self, speed: Speed, line: Slope, work: float, seconds: float) -> None:
        speed.add(seconds, line.base + line.seconds * work)
        if line.add(work, seconds):
            self._changed.update(range(len(self.loads)))

    def _rank(self) -> None:
        """Predict again for the engines in which something changed."""
        ranks = self._ranks
        for engine in self._changed:
            load = self.loads[engine]
            del ranks[bisect.bisect_left(ranks, (load.rank, engine))]
            self._token -= load.token
            load.update(self._prompt, self._answer)
            self._token += load.token
            bisect.insort(ranks, (load.rank, engine))
        self._changed.clear()
