"""Predicts what a ticket costs on each of several engines, in seconds.

The prediction has three parts. The first is the time to the first token: that of the prompt tokens
which the engine has not computed yet, its own and those of the prompts ahead of it. The second is
the time of the answer's tokens, which grows with the number of sequences that share each step. The
third is what the computing of a prompt costs others, which a cached beginning saves. Both times are
learned for each engine from the tickets that it has served.
"""

import attrs

from llmserve.admission.pool.prefixes import ENDS, PrefixIndex
from llmserve.admission.regression import LinearFit
from llmserve.admission.ticket import Ticket

# Number of samples before a fit is used, and the figures until then: seconds for each prompt token,
# and seconds that one more sequence adds to a token. Only their relation matters: on GPUs and CPUs
# one more sequence costs about as much as three prompt tokens.
ENOUGH = 8
PROMPT_TOKEN, SEQUENCE = 2e-5, 6e-5
# What a second of the answer counts against a second until the first token: it is read while it
# comes, so a wait is worse.
ANSWER = 0.25
# A prompt that is computed holds up the prompts behind it and the answers beside it. This is how
# many seconds of others a second of computing costs; a cached prompt saves them. All latencies of
# Mooncake's traces are about equal from 1 to 7, and worse with 0 (`python -m benchmarks routing`).
DELAYED = 3.0
# A fit whose samples hardly differ has no slope. More work never makes an answer faster, so the
# slope is at least this part of that of the line through the origin.
LEAST = 0.1


@attrs.define
class Slope:
    """Seconds as a function of an amount of work: a line that always rises.

    `seconds` are those of one unit of work until there are enough samples.
    """

    seconds: float
    base: float = 0.0
    _fit: LinearFit = attrs.field(factory=LinearFit)
    _count: int = 0

    def add(self, work: float, seconds: float) -> None:
        fit = self._fit
        fit.add(work, seconds)
        self._count += 1
        if self._count >= ENOUGH and work:
            mean = fit.at(work) / work
            self.seconds = max(fit.b, LEAST * mean)
            self.base = fit.a


@attrs.define
class EngineLoad:
    """What one engine works on, as far as the router knows.

    Attributes:
        running: Tickets in the engine.
        pending: Prompt tokens of the tickets without a first token, without those that were cached.
        wait: Predicted seconds until their first tokens.
        pace: Predicted seconds for each token of one more answer.
    """

    prefill: Slope = attrs.field(factory=lambda: Slope(PROMPT_TOKEN))
    decode: Slope = attrs.field(factory=lambda: Slope(SEQUENCE))
    running: int = 0
    pending: float = 0.0

    @property
    def wait(self) -> float:
        return self.prefill.base + self.prefill.seconds * self.pending

    @property
    def pace(self) -> float:
        return self.decode.base + self.decode.seconds * (self.running + 1)


@attrs.define
class _Placed:
    """A ticket in an engine: its prompt tokens that are not cached, and the work ahead of it then."""

    fresh: float
    ahead: float
    running: int
    first_token: float | None = None


class Router:
    """Chooses among `engines` engines for each ticket, and learns from what becomes of it."""

    def __init__(self, engines: int) -> None:
        self.prefixes = PrefixIndex(engines)
        self.loads = [EngineLoad() for _ in range(engines)]
        # The figures of the loads, in lists that are quick to combine for every arrival.
        self._wait = [0.0] * engines
        self._pace = [0.0] * engines
        self._token = [0.0] * engines
        self._placed: dict[Ticket, _Placed] = {}
        # The last ticket that was predicted, and who has its beginnings; until one starts.
        self._looked: tuple[Ticket | None, list[tuple[int, int]]] = None, []
        for engine in range(engines):
            self._note(engine)

    def predict(self, ticket: Ticket) -> list[float]:
        """Return for each engine what the ticket costs there, in seconds. Only differences count."""
        answer, prompt = ANSWER * ticket.expected_tokens, ticket.prompt_tokens
        loads = zip(self._wait, self._pace, self._token, strict=True)
        costs = [wait + answer * pace + token * prompt for wait, pace, token in loads]
        self._looked = ticket, (found := self.prefixes.cached(ticket.prefix))
        if found:
            others = DELAYED * sum(self._token) / len(self._token)
            for engine, tokens in found:
                costs[engine] -= tokens * (self._token[engine] + others)
        return costs

    def cached(self, ticket: Ticket, engine: int) -> int:
        """Return how many of the ticket's prompt tokens the engine's cache is expected to have."""
        looked, found = self._looked
        if looked is not ticket:
            self._looked = ticket, (found := self.prefixes.cached(ticket.prefix))
        return next((tokens for holder, tokens in found if holder == engine), 0)

    # Observations

    def started(self, ticket: Ticket, engine: int) -> None:
        load = self.loads[engine]
        held = self.cached(ticket, engine)
        self._looked = None, []
        # The engine computes the last token in any case.
        fresh = max(1.0, ticket.prompt_tokens - held)
        self._placed[ticket] = _Placed(fresh, load.pending + fresh, load.running + 1)
        load.running += 1
        load.pending += fresh
        shared = ENDS[len(ticket.prefix) - 1] if ticket.prefix else 0
        self.prefixes.remember(engine, ticket.prefix, int(ticket.prompt_tokens - shared + ticket.expected_tokens))
        self._note(engine)

    def first_token(self, ticket: Ticket, engine: int, now: float) -> None:
        placed = self._placed.get(ticket)
        if placed is None or placed.first_token is not None:
            return
        placed.first_token = now
        load = self.loads[engine]
        load.pending -= placed.fresh
        if ticket.granted is not None:
            load.prefill.add(placed.ahead, now - ticket.granted)
        self._note(engine)

    def left(self, ticket: Ticket, engine: int, now: float) -> None:
        placed, load = self._placed.pop(ticket), self.loads[engine]
        load.running -= 1
        if placed.first_token is None:
            load.pending -= placed.fresh
        elif ticket.complete and ticket.generated > 1:
            running = (placed.running + load.running + 1) / 2
            load.decode.add(running, (now - placed.first_token) / (ticket.generated - 1))
        if not load.running:
            load.pending = 0.0
        self._note(engine)

    def _note(self, engine: int) -> None:
        load = self.loads[engine]
        self._wait[engine], self._pace[engine], self._token[engine] = load.wait, load.pace, load.prefill.seconds
