"""PoolPolicy makes one policy out of a policy for each engine, and grants each ticket to an engine."""

from collections.abc import Collection, Iterable, Sequence

import attrs

from llmserve.admission.policies import Policy, adopt, predictor
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
        self.engines = set(range(engines))
        # The prompt and answer tokens from which an engine holds tickets, and the most of them.
        self._held: dict[int, tuple[int, float]] = {}
        self._most = 0, 0.0

    def change(self, engine: int, *, up: bool) -> None:
        """Note that something changed in an engine, and whether it takes tickets."""
        self._held.pop(engine, None)
        if up:
            self.engines.add(engine)
        else:
            self.engines.discard(engine)

    def close(self, engine: int, ticket: Ticket, *, sized: bool) -> None:
        """Note that an engine holds this ticket, and larger ones if `sized`, or every ticket."""
        self.engines.discard(engine)
        size = (ticket.prompt_tokens, ticket.expected_tokens) if sized else (0, 0.0)
        self._held[engine] = size
        self._most = max(self._most[0], size[0]), max(self._most[1], size[1])

    def for_ticket(self, ticket: Ticket) -> set[int]:
        """Return the engines that may let this ticket start."""
        prompt, expected = ticket.prompt_tokens, ticket.expected_tokens
        if prompt < self._most[0] or expected < self._most[1]:
            for engine in [engine for engine, held in self._held.items() if prompt < held[0] or expected < held[1]]:
                self.change(engine, up=True)
            self._most = prompt, expected
        return self.engines


# Number of tickets among which a free engine chooses, and that may overtake one. With four times as
# many, Mooncake's traces under overload are not served better.
FEW = 8

_NEVER: tuple[Ticket | None, int, float, list[float], int] = None, 0, 0.0, [], 0


class PoolPolicy:
    """A policy for several engines, which satisfies `Policy` and `Predictor`.

    A ticket may start if the policy of one engine lets it start. Of these engines it gets the one
    that the router predicts to be soonest. Its `engine` has the number.

    Args:
        policies: One unused policy for each engine, in the order of their numbers.
        max_wait: Longest wait in seconds under policies that only count and have no own one.
    """

    def __init__(self, policies: Sequence[Policy], max_wait: float = 30.0, router: Router | None = None) -> None:
        self.members = [_Member(policy, predictor(policy, max_wait)) for policy in policies]
        self.max_wait = max_wait
        self.router = router or Router(len(policies))
        self._up = set(range(len(policies)))
        self._open = _Open(len(policies))
        self._sized: Collection[str] | None = getattr(policies[0], "sized", None)
        self._why = "engines"
        # The last ticket that may start, and where.
        self._choice: tuple[Ticket | None, int] = None, 0
        # The last ticket for which the engines were compared, its tokens then, the predictions and
        # the least of them; until something but a start changes.
        self._compared: tuple[Ticket | None, int, float, list[float], int] = _NEVER

    @property
    def name(self) -> str:
        return self.members[0].policy.name

    @property
    def limit(self) -> int | None:
        limits = [self.members[engine].policy.limit for engine in self._up]
        return None if None in limits else sum(limit for limit in limits if limit is not None)

    @property
    def uses_lengths(self) -> bool:
        """Whether the policies use the lengths of running answers."""
        return not isinstance(self.members[0].predictor, NoPrediction)

    # Engines

    def suspend(self, engine: int) -> bool:
        """Start nothing on an engine any more; return whether another engine takes tickets."""
        self._up.discard(engine)
        self._change(engine)
        return bool(self._up)

    def resume(self, engine: int, *, emptied: bool) -> None:
        """Start tickets on an engine again. `emptied` says that its cache is empty: it is a new process."""
        self._up.add(engine)
        self._change(engine)
        if emptied:
            self.router.prefixes.clear(engine)

    def move(self, ticket: Ticket, now: float) -> None:
        """Give a running ticket another engine, because its own is gone; no limit applies.

        If no engine takes tickets, the ticket stays where it is.
        """
        if ticket.engine in self._up or not self._up:
            return
        ticket.complete = False
        self.left(ticket, now)
        ticket.granted = now
        self._choice = ticket, self._best(ticket, self._up)
        self.started(ticket, now)

    # The policy

    def holds(self, ticket: Ticket, now: float) -> str | None:
        """Return None if the policy of an engine lets the ticket start, a reason otherwise."""
        if not self._up:
            return "engines"
        if self._sized is None:
            for engine in self._up:
                self._open.change(engine, up=True)
        engines = self._open.for_ticket(ticket)
        while engines:
            engine = self._best(ticket, engines)
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
        ticket.engine = engine if chosen is ticket else self._best(ticket, self._up)
        ticket.cached_tokens = self.router.cached(ticket, ticket.engine)
        self._open.change(ticket.engine, up=ticket.engine in self._up)
        self.members[ticket.engine].policy.started(ticket, now)
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
            if self._fits(ticket) and self.holds(ticket, now) is None:
                head.overtaken += 1
                return ticket
        return head

    def _fits(self, ticket: Ticket) -> bool:
        """Whether an engine that may have room has most of what any engine has of the prompt."""
        found = self.router.prefixes.cached(ticket.prefix)
        most = max((tokens for _, tokens in found), default=0)
        return any(2 * tokens > most and engine in self._open.engines for engine, tokens in found)

    # What it predicts

    def terms(self, ticket: Ticket, queue: QueueState, now: float) -> Terms:
        if self.uses_lengths and self._up:
            ticket.cached_tokens = self.router.cached(ticket, self._best(ticket, self._up))
        return self._predictor(ticket).terms(ticket, queue, now)

    def patience(self, ticket: Ticket, queue: QueueState) -> float:
        return self._predictor(ticket).patience(ticket, queue)

    def overdue(self, ticket: Ticket, queue: QueueState, now: float) -> float | None:
        return self._predictor(ticket).overdue(ticket, queue, now)

    def first_token(self, ticket: Ticket, now: float) -> None:
        self._change(ticket.engine).predictor.first_token(ticket, now)
        self.router.first_token(ticket, ticket.engine, now)

    def record(self, sample: EngineSample, now: float) -> None:
        if sample.kv_tokens is not None:
            self.router.prefixes.capacity[sample.engine] = sample.kv_tokens
        self._change(sample.engine).predictor.record(sample, now)

    def figures(self) -> PolicyFigures:
        """Return the figures of the engine that got the last ticket."""
        return self.members[self._choice[1]].predictor.figures()

    def adopt(self, other: "PoolPolicy", now: float) -> None:
        """Take over the limits of `other`, which has as many engines."""
        for mine, theirs in zip(self.members, other.members, strict=True):
            adopt(mine.policy, theirs.policy, now)
            mine.predictor = predictor(mine.policy, other.max_wait)
        for engine in self._up:
            self._change(engine)
        self.max_wait = other.max_wait

    # The choice

    def _best(self, ticket: Ticket, engines: Collection[int]) -> int:
        """Return the engine of `engines` that the router prefers. An arrival is compared once."""
        if len(engines) == 1:
            return next(iter(engines))
        compared, prompt, expected, costs, first = self._compared
        if compared is not ticket or prompt != ticket.prompt_tokens or expected != ticket.expected_tokens:
            costs = self.router.predict(ticket)
            first = costs.index(min(costs))
            self._compared = ticket, ticket.prompt_tokens, ticket.expected_tokens, costs, first
        return first if first in engines else min(sorted(engines), key=costs.__getitem__)

    def _predictor(self, ticket: Ticket) -> Predictor:
        """Return the predictor of the engine that would be best if none held the ticket."""
        return self.members[self._best(ticket, self._up or range(len(self.members))) if self.uses_lengths else 0].predictor

    def _change(self, engine: int) -> _Member:
        self._open.change(engine, up=engine in self._up)
        self._compared = _NEVER
        return self.members[engine]
