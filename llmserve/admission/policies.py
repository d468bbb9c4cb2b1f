"""The rule that says whether one more sequence may start. Knows nothing of queues, tenants or time."""

from typing import Protocol

import attrs


class Policy(Protocol):
    """Asked whenever a slot might be given away; must not change anything when asked."""

    @property
    def limit(self) -> int | None:
        """The most that may run now, for statistics and for the length of the queue; None where there is no such number."""

    def may_start(self, running: int) -> bool:
        """Whether one more may start beside `running` others. Must be True for running == 0, or nothing would ever run."""


@attrs.frozen
class FixedLimit:
    """At most `limit` at once."""

    limit: int = attrs.field(validator=attrs.validators.ge(1))

    def may_start(self, running: int) -> bool:
        return running < self.limit


@attrs.frozen
class Unlimited:
    """Everything starts at once: the engine's own queue takes what it cannot batch. For comparison, and for offline work."""

    limit: None = None

    def may_start(self, running: int) -> bool:
        return True
