"""PoolPolicy makes one policy out of a policy for each engine, and grants each ticket to an engine."""

from collections.abc import Collection, Iterable, Sequence

import attrs

from llmserve.admission.policies import Policy, adopt, predictor
from llmserve.admission.pool.prefixes import bits
from llmserve.admission.pool.router import Router
from llmserve.admission.prediction import EngineSample, NoPrediction, PolicyFigures, Predictor, QueueState, Terms
from llmserve.admission.ticket import Ticket


@attrs.define
class _Member:
    """One engine's policy, which may predict."""

    policy: Policy
    predictor: Predictor


class _Open:
    """The engines that take tickets and may have room.

    An engine that holds a ticket is not asked again until something changes in it, so a full pool
    costs no more than a full engine. A policy names in its `sized` the constraints that hold larger
    tickets too; its others hold every ticket. A policy without `sized` is asked each time.
    """

    def __init__(self, engines: int) -> None:
        # Those that take tickets, and those of them that may have room, as bits.
        self.up = self.engines = (1 << engines) - 1
        # The prompt and answer tokens from which a closed engine holds tickets, and the most of them.
        self._held: dict[int, tuple[int, float]] = {}
        self._most = 0, 0.0

    def change(self, engine: int) -> None:
        """Note that something changed in an engine."""
        bit = 1 << engine
        self.engines = self.engines & ~bit | self.up & bit

    def close(self, engine: int, ticket: Ticket, *, sized: bool) -> None:
        """Note that an engine holds this ticket, and larger ones if `sized`, or every ticket."""
        self.engines &= ~(1 << engine)
        size = (ticket.prompt_tokens, ticket.expected_tokens) if sized else (0, 0.0)
        self._held[engine] = size
        self._most = max(self._most[0], size[0]), max(self._most[1], size[1])

    def for_ticket(self, ticket: Ticket) -> int:
        """Return the engines that may let this ticket start, as bits."""
        prompt, expected = ticket.prompt_tokens, ticket.expected_tokens
        if prompt < self._most[0] or expected < self._most[1]:
            for engine in [engine for engine, held in self._held.items() if prompt < held[0] or expected < held[1]]:
                self.change(engine)
            self._most = prompt, expected
        return self.engines


def step_tokens(policy: Policy, engine: int) -> int | None:
    """Return the maximum number of tokens in a step that a policy asks of an engine; None if it asks for none."""
    mine = policy.members[engine].policy if isinstance(policy, PoolPolicy) else policy
    return getattr(mine, "step_tokens", None)


# Number of tickets among which a free engine chooses, and that may overtake one. With four times as
# many, Mooncake's traces under overload are not served better.
FEW = 8


_NO_CHOICE: tuple[Ticket | None, int] = None, 0
_NOTHING: tuple[Ticket | None, int, float, int, int] = None, 0, 0.0, 0, 0


class PoolPolicy:
    """A policy for several engines, which satisfies `Policy` and `Predictor`.

    A ticket may start if the policy of one engine lets it start. Of these engines it gets the one
    that the router predicts to be soonest. Its `engine` has the number.

    Args:
        policies: One unused policy for each engine, in the order of their numbers.
        max_wait: Longest wait in seconds under policies that only count and have no own one.
        router: The router; by default one that knows no number of slots.
    """

    def __init__(self, policies: Sequence[Policy], max_wait: float = 30.0, router: Router | None = None) -> None:
        self.members = [_Member(policy, predictor(policy, max_wait)) for policy in policies]
        self.max_wait = max_wait
        self.router = router or Router(len(policies))
        self._open = _Open(len(policies))
        # Whether the policies use the lengths of running answers.
        self.uses_lengths = not isinstance(self.members[0].predictor, NoPrediction)
        self._sized: Collection[str] | None = getattr(policies[0], "sized", None)
        self._why = "engines"
        # The engine that got the last ticket.
        self._last = 0
        # The last ticket that may start, and where, until something changes.
        self._choice: tuple[Ticket | None, int] = _NO_CHOICE
        # The last choice among engines, and what it depended on, until something changes.
        self._chosen: tuple[Ticket | None, int, float, int, int] = _NOTHING

    @property
    def name(self) -> str:
        return self.members[0].policy.name

    @property
    def limit(self) -> int | None:
        limits = [self.members[engine].policy.limit for engine in bits(self._open.up)]
        return None if None in limits else sum(limit for limit in limits if limit is not None)

    # Engines

    def suspend(self, engine: int) -> bool:
        """Start nothing on an engine any more; return whether another engine takes tickets."""
        self._open.up &= ~(1 << engine)
        self._change(engine)
        return bool(self._open.up)

    def resume(self, engine: int, *, emptied: bool) -> None:
        """Start tickets on an engine again. `emptied` says that its cache is empty: it is a new process."""
        self._open.up |= 1 << engine
        self._change(engine)
        if emptied:
            self.router.emptied(engine)

    def move(self, ticket: Ticket, now: float) -> None:
        """Give a running ticket another engine, because its own is gone; no limit applies.

        If no engine takes tickets, the ticket stays where it is.
        """
        if self._open.up >> ticket.engine & 1 or not self._open.up:
            return
        self.left(ticket, now)
        ticket.granted = now
        self.started(ticket, now)

    # The policy

    def holds(self, ticket: Ticket, now: float) -> str | None:
        """Return None if the policy of an engine lets the ticket start, a reason otherwise."""
        if not self._open.up:
            return "engines"
        if self._sized is None:
            self._open.engines = self._open.up
        elif self._choice[0] is ticket:
            return None
        while engines := self._open.for_ticket(ticket):
            if ticket.granted is not None:
                # A ticket that runs stands for others like it.
                engine = engines.bit_length() - 1
            else:
                engine = self._best(ticket, engines)
                if self.uses_lengths:
                    ticket.cached_tokens = self.router.cached(ticket, engine)
            why = self.members[engine].policy.holds(ticket, now)
            if why is None:
                self._choice = ticket, engine
                return None
            self._why = why
            self._open.close(engine, ticket, sized=why in (self._sized or ()))
        return self._why

    def started(self, ticket: Ticket, now: float) -> None:
        """Grant the ticket to the engine that `holds` has just found, or to the best one."""
        chosen, engine = self._choice
        ticket.engine = self._last = engine if chosen is ticket else self.router.best(ticket, self._open.up)
        ticket.cached_tokens = self.router.cached(ticket, ticket.engine)
        self._change(ticket.engine).policy.started(ticket, now)
        self.router.started(ticket, ticket.engine)

    def left(self, ticket: Ticket, now: float) -> float | None:
        self.router.left(ticket, ticket.engine, now)
        return self._change(ticket.engine).policy.left(ticket, now)

    def fitting(self, head: Ticket, behind: Iterable[Ticket], now: float) -> Ticket:
        """Return the first of these tickets whose prompt's beginning a free engine has.

        All of them have the same tenant and band. The head may start now; it starts if no ticket
        fits, or `FEW` have overtaken it.
        """
        if head.overtaken >= FEW or self._fits(head):
            return head
        for ticket in behind:
            if now <= ticket.expires and self._fits(ticket) and self.holds(ticket, now) is None:
                head.overtaken += 1
                return ticket
        return head

    def _fits(self, ticket: Ticket) -> bool:
        """Whether an engine that may have room has most of what any engine has of the prompt."""
        found = self.router.holders(ticket)
        most = max((tokens for _, tokens in found), default=0)
        return any(2 * tokens > most and holders & self._open.engines for holders, tokens in found)

    # What it predicts

    def terms(self, ticket: Ticket, queue: QueueState, now: float) -> Terms:
        if self.uses_lengths and self._open.up:
            ticket.cached_tokens = self.router.cached(ticket, self._best(ticket, self._open.up))
        return self._predictor(ticket).terms(ticket, queue, now)

    def patience(self, ticket: Ticket, queue: QueueState) -> float:
        return self._predictor(ticket).patience(ticket, queue)

    def overdue(self, ticket: Ticket, queue: QueueState, now: float) -> float | None:
        return self._predictor(ticket).overdue(ticket, queue, now)

    def first_token(self, ticket: Ticket, now: float) -> None:
        # Policies that only count learn nothing from it, so nothing changed.
        if self.uses_lengths:
            self._change(ticket.engine).predictor.first_token(ticket, now)
        self.router.first_token(ticket, ticket.engine, now)

    def record(self, sample: EngineSample, now: float) -> None:
        if sample.kv_tokens is not None:
            self.router.prefixes.capacity[sample.engine] = sample.kv_tokens
        self.router.record(sample)
        if self.uses_lengths:
            self._change(sample.engine).predictor.record(sample, now)

    def figures(self) -> PolicyFigures:
        """Return the figures of the engine that got the last ticket."""
        return self.members[self._last].predictor.figures()

    def adopt(self, other: "PoolPolicy", now: float) -> None:
        """Take over the limits of `other`, which has as many engines."""
        for mine, theirs in zip(self.members, other.members, strict=True):
            adopt(mine.policy, theirs.policy, now)
            mine.predictor = predictor(mine.policy, other.max_wait)
        self._open.engines = self._open.up
        self.max_wait = other.max_wait

    def _predictor(self, ticket: Ticket) -> Predictor:
        """Return the predictor of the engine that would be best if none held the ticket."""
        if not self.uses_lengths or not self._open.up:
            return self.members[0].predictor
        # Before its prompt is known, a ticket has no best engine.
        engine = self._best(ticket, self._open.up) if ticket.prompt_tokens else self._last
        return self.members[engine].predictor

    def _best(self, ticket: Ticket, among: int) -> int:
        """Return the router's choice, which an arrival needs several times."""
        whom, prompt, expected, engines, engine = self._chosen
        if whom is ticket and prompt == ticket.prompt_tokens and expected == ticket.expected_tokens and engines == among:
            return engine
        engine = self.router.best(ticket, among)
        self._chosen = ticket, ticket.prompt_tokens, ticket.expected_tokens, among, engine
        return engine

    def _change(self, engine: int) -> _Member:
        self._choice, self._chosen = _NO_CHOICE, _NOTHING
        self._open.change(engine)
        return self.members[engine]
