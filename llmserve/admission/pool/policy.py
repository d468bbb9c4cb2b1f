"""PoolPolicy makes one policy out of a policy for each engine, and grants each ticket to an engine."""

from collections.abc import Sequence

import attrs

from llmserve.admission.policies import Policy, adopt, predictor
from llmserve.admission.pool.router import Router
from llmserve.admission.prediction import EngineSample, NoPrediction, PolicyFigures, Predictor, QueueState, Terms
from llmserve.admission.ticket import Ticket


@attrs.define
class _Member:
    """One engine and its policy.

    `held` are the prompt and answer tokens of a ticket that the policy has held, and `why` is its
    constraint. They count until something changes in the engine: a larger ticket would be held too,
    so a full engine is not asked at each arrival.
    """

    policy: Policy
    predictor: Predictor
    held: tuple[int, float] | None = None
    why: str = ""

    def holds(self, ticket: Ticket, now: float) -> str | None:
        held = self.held
        if held is not None and ticket.prompt_tokens >= held[0] and ticket.expected_tokens >= held[1]:
            return self.why
        constraint = self.policy.holds(ticket, now)
        if constraint is not None:
            self.held, self.why = (ticket.prompt_tokens, ticket.expected_tokens), constraint
        return constraint


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
        self._up = tuple(range(len(policies)))
        # The last ticket that may start, and where.
        self._choice: tuple[Ticket | None, int] = None, 0
        # The last ticket for which the engines were compared, its expected answer then, and the
        # predictions; until something but a start changes.
        self._compared: tuple[Ticket | None, float, list[float]] = None, 0.0, []

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
        self._change(engine)
        self._up = tuple(other for other in self._up if other != engine)
        return bool(self._up)

    def resume(self, engine: int, *, emptied: bool) -> None:
        """Start tickets on an engine again. `emptied` says that its cache is empty: it is a new process."""
        self._change(engine)
        self._up = tuple(sorted({*self._up, engine}))
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
        self._choice = ticket, self._best(ticket)
        self.started(ticket, now)

    # The policy

    def holds(self, ticket: Ticket, now: float) -> str | None:
        """Return None if the policy of an engine lets the ticket start, the reason of the best engine otherwise."""
        if not self._up:
            return "engines"
        costs = self._costs(ticket)
        best = min(self._up, key=costs.__getitem__)
        constraint = self.members[best].holds(ticket, now)
        if constraint is None:
            self._choice = ticket, best
            return None
        for engine in sorted(self._up, key=costs.__getitem__):
            if self.members[engine].holds(ticket, now) is None:
                self._choice = ticket, engine
                return None
        return constraint

    def started(self, ticket: Ticket, now: float) -> None:
        """Grant the ticket to the engine that `holds` has just found, or to the best one."""
        chosen, engine = self._choice
        ticket.engine = engine if chosen is ticket else self._best(ticket)
        member = self.members[ticket.engine]
        member.held = None
        member.policy.started(ticket, now)
        self.router.started(ticket, ticket.engine)

    def left(self, ticket: Ticket, now: float) -> float | None:
        self.router.left(ticket, ticket.engine, now)
        return self._change(ticket.engine).policy.left(ticket, now)

    # What it predicts

    def terms(self, ticket: Ticket, queue: QueueState, now: float) -> Terms:
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
            mine.predictor, mine.held = predictor(mine.policy, other.max_wait), None
        self.max_wait = other.max_wait

    # The choice

    def _costs(self, ticket: Ticket) -> list[float]:
        """Return the router's prediction for each engine, computed once for an arrival."""
        compared, expected, costs = self._compared
        if compared is not ticket or expected != ticket.expected_tokens:
            costs = self.router.predict(ticket)
            self._compared = ticket, ticket.expected_tokens, costs
        return costs

    def _best(self, ticket: Ticket) -> int:
        """Return the engine that would be soonest if none held the ticket."""
        return min(self._up, key=self._costs(ticket).__getitem__, default=ticket.engine)

    def _predictor(self, ticket: Ticket) -> Predictor:
        return self.members[self._best(ticket)].predictor

    def _change(self, engine: int) -> _Member:
        member = self.members[engine]
        member.held = None
        self._compared = None, 0.0, []
        return member
