"""Who sends a request, as far as its wire says."""

from collections.abc import Callable, Mapping

import attrs

from llmserve import Timeline

# The header that holds a request's deadline, in seconds.
TIMEOUT = "X-Request-Timeout"


@attrs.frozen
class Caller:
    """Who sends a request, as far as its wire tells.

    `tenant` is that of the key that was shown, None where callers name themselves; `key` is the key's id. `deadline` is in seconds. `trace`
    are the headers of the trace that the request is part of. `on_arrival` is each request's (`GenerationRequest`).
    """

    tenant: str | None = None
    key: str | None = None
    deadline: float | None = None
    trace: Mapping[str, str] = attrs.field(factory=dict)
    on_arrival: Callable[[Timeline], None] | None = None

    @property
    def names(self) -> dict[str, str]:
        """What the client sent, by the library's names for it."""
        return {} if self.deadline is None else {"deadline": TIMEOUT}
