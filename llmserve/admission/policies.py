"""Policies decide whether one more sequence may start. They know neither queues nor tenants."""

import math
from typing import ClassVar, Protocol, cast

import attrs

from llmserve.admission.prediction import NoPrediction, Predictor
from llmserve.admission.ticket import Ticket
from llmserve.errors import ConfigurationError

PREDICTS = ("terms", "patience", "overdue", "first_token", "record", "figures")


class Policy(Protocol):
    """Decides whether a ticket may start.

    A policy that only counts has nothing else, except `max_wait` if it sets the longest wait itself
    (seconds; the controller's own `max_wait` applies otherwise). A policy that predicts also has
    the methods of `Predictor`. A policy keeps what it learns in its own attributes.

    A policy whose answer changes only when something changes in its engine may have `sized`: the
    constraints that hold larger tickets too, where its others hold every ticket. Then it is asked
    less often if there are several engines.

    A policy that limits the tokens in a step of its engine has `step_tokens`, which is asked for
    after every step: an int, or None for the engine's own maximum.
    """

    @property
    def name(self) -> str: ...

    @property
    def limit(self) -> int | None:
        """Maximum number of running tickets, for statistics and the queue's length, or None."""

    def holds(self, ticket: Ticket, now: float) -> str | None:
        """Return the constraint against a start now, or None.

        It must be None if nothing runs, or no ticket would ever start. The ticket's `room` should
        still be free after the start.
        """

    def started(self, ticket: Ticket, now: float) -> None: ...

    def left(self, ticket: Ticket, now: float) -> float | None:
        """Note that a started ticket left; return its real cost, or None for the expected cost."""


def predictor(policy: Policy, max_wait: float) -> Predictor:
    """Return the policy itself if it predicts, or what stands in for it. Raises TypeError.

    `max_wait` is the longest wait in seconds under a policy that only counts and has no own one.
    """
    missing = [name for name in PREDICTS if not hasattr(policy, name)]
    if len(missing) == len(PREDICTS):
        return NoPrediction(getattr(policy, "max_wait", max_wait))
    if missing:
        raise TypeError(f"the policy {policy.name} predicts, but has no {', '.join(missing)}")
    return cast("Predictor", policy)


def adopt(policy: Policy, other: Policy, now: float) -> None:
    """Give a policy the limits of another one, and keep its running tickets and what it has learnt.

    Raises ConfigurationError if one policy cannot take over the limits of the other.
    """
    if policy is other:
        return
    take = getattr(policy, "adopt", None)
    if take is None or type(policy) is not type(other):
        raise ConfigurationError(f"the policy {policy.name} cannot become {other.name} while it is in use")
    take(other, now)


@attrs.define
class FixedLimit:
    """Lets at most `limit` tickets run: `FixedLimit(8)`.

    A ticket that waits longer than `max_wait` seconds is refused.
    """

    limit: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    name: str = "fixed"
    max_wait: float = attrs.field(default=math.inf, kw_only=True)
    sized: ClassVar = ()
    _running: int = attrs.field(default=0, init=False)

    def holds(self, ticket: Ticket, now: float) -> str | None:
        return "limit" if self._running >= max(1, self.limit - ticket.room.tickets) else None

    def started(self, ticket: Ticket, now: float) -> None:
        self._running += 1

    def left(self, ticket: Ticket, now: float) -> float | None:
        self._running -= 1
        return None

    def adopt(self, other: "FixedLimit", now: float) -> None:
        """Take over the limits of `other`. Running tickets above the new limit run to their end."""
        self.limit, self.max_wait = other.limit, other.max_wait


@attrs.define
class Unlimited:
    """Starts every ticket at once; the engine queues what it cannot batch.

    Meant for comparisons and offline work.
    """

    limit: None = None
    name: str = "unlimited"
    max_wait: float = attrs.field(default=math.inf, kw_only=True)
    sized: ClassVar = ()

    def holds(self, ticket: Ticket, now: float) -> str | None:
        return None

    def started(self, ticket: Ticket, now: float) -> None:
        pass

    def left(self, ticket: Ticket, now: float) -> float | None:
        return None

    def adopt(self, other: "Unlimited", now: float) -> None:
        """Take over the longest wait of `other`."""
        self.max_wait = other.max_wait
