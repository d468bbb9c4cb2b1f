"""A request and an answer's head, as an ingress passes them between a client and a replica."""

from collections.abc import Iterable

import attrs
from aiohttp import hdrs

# The header with a replica's secret, which shows the replica that an ingress sent the request.
SECRET = "X-LLMServe-Ingress"  # noqa: S105 - the header's name
# Headers that apply to a single connection and are not relayed.
HOP_BY_HOP = frozenset(
    {"connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", SECRET.lower()}
)
EVENTS = "text/event-stream"


@attrs.frozen
class RelayedRequest:
    """A request. `path` includes the query, as the client sent it."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def get(self, name: str) -> str:
        return _value(self.headers, name)


@attrs.frozen
class ResponseHead:
    """The status and the headers of an answer."""

    status: int
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        return _value(self.headers, name)

    @property
    def is_events(self) -> bool:
        return self.get(hdrs.CONTENT_TYPE).startswith(EVENTS)


def _value(headers: tuple[tuple[str, str], ...], name: str) -> str:
    return next((value for key, value in headers if key.lower() == name.lower()), "")


def end_to_end(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in headers if name.lower() not in HOP_BY_HOP)
