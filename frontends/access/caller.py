"""The caller of a request, as the wire protocol describes it."""

from collections.abc import Callable, Mapping

import attrs

from llmserve import Timeline

# The header that holds a request's deadline, in seconds.
TIMEOUT = "X-Request-Timeout"


@attrs.frozen
class Caller:
    """The caller of a request, as the wire protocol describes it.

    Attributes:
        tenant: the tenant of the caller's API key; None where the request names its tenant.
        deadline: in seconds.
        trace: the headers of the trace that the request belongs to.
        on_arrival: passed on to each `GenerationRequest`.
    """

    tenant: str | None = None
    key: str | None = None
    deadline: float | None = None
    trace: Mapping[str, str] = attrs.field(factory=dict)
    on_arrival: Callable[[Timeline], None] | None = None

    @property
    def names(self) -> dict[str, str]:
        """The client's names of values, by the library's names of them, for error messages."""
        return {} if self.deadline is None else {"deadline": TIMEOUT}
