"""Stored responses: what the server keeps of each, and the store of them, which may be in another process."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from frontends.responses.events import START, Place

# The beginning of a response's id.
PREFIX = "resp"
# The statuses of a response that has not ended.
RUNNING = frozenset({"queued", "in_progress"})
# The statuses of a response that others can continue.
COMPLETE = frozenset({"completed", "incomplete"})
# Approximate bytes of a response in addition to its content.
OVERHEAD = 1024

# "add" keeps a new response, and returns it without its content, or None if there is no room for it.
# "replace" keeps the next state of one that runs, and "append" more events of it; both return None.
# "cancel" ends a response that runs. "get", "body", "cancel" and "delete" return the response, or
# None if there is none; only that of "get" surely has its items, which may be large. "events" returns
# the response with some of its events as its body, or None if it has none.
Kind = Literal["add", "replace", "append", "get", "body", "events", "cancel", "delete"]
Stop = Callable[[], object]


class Name(NamedTuple):
    """A response's id, and the tenant of the API key that it belongs to; None without API keys."""

    tenant: str | None
    id: str


class StoredResponse(msgspec.Struct, frozen=True, array_like=True):
    """A response that the server keeps.

    Attributes:
        status: the status in `body`.
        background: whether the client did not wait for the answer.
        items: the items that the response answers, those of earlier responses included, as JSON.
        body: the response as JSON.
    """

    status: str
    background: bool
    items: bytes
    body: bytes

    @property
    def size(self) -> int:
        """The bytes that the response counts for, without its events.

        `status` is subtracted because `body` has it too: so a change from queued to in_progress needs no room.
        """
        return OVERHEAD + len(self.items) + len(self.body) - len(self.status)

    @property
    def runs(self) -> bool:
        return self.status in RUNNING

    def ended(self, status: str, error: dict[str, str] | None = None) -> "StoredResponse":
        """Return the response with a status that does not change any more."""
        body = msgspec.json.decode(self.body) | {"status": status, "error": error}
        return StoredResponse(status, self.background, self.items, msgspec.json.encode(body))

    def bare(self, body: bytes) -> "StoredResponse":
        """Return the response with this body and without its items."""
        return StoredResponse(self.status, self.background, b"", body)

    def conversation(self) -> bytes:
        """Return the items, and those of the answer after them, as JSON."""
        return joined(self.items, bytes(_ANSWER.decode(self.body).output))


class Operation(msgspec.Struct, frozen=True, array_like=True):
    """What a store does with a response.

    Attributes:
        kind: what it does.
        name: the name of the response.
        response: the response to add, or its next state.
        events: the next events of a response that clients follow. The store adds the last one, when
            the response ends.
        place: where the events to return begin.
    """

    kind: Kind
    name: Name
    response: StoredResponse | None = None
    events: bytes = b""
    place: Place = START


class ResponseStore(Protocol):
    """A store of responses, in this process or in the one that several processes share."""

    @property
    def keeps(self) -> bool:
        """Whether it keeps responses at all."""

    async def ask(self, operation: Operation, stop: Stop | None = None) -> StoredResponse | None:
        """Do an operation.

        `stop` comes with a new response that runs. It is called if the response, once kept, ends
        before its last state is here: a client cancels or deletes it, or the store drops it.
        """


class Record:
    """The place of a new response in a store."""

    def __init__(self, store: ResponseStore, name: Name, items: bytes, *, background: bool) -> None:
        self._store = store
        self._name = name
        self._items = items
        self.background = background

    @property
    def name(self) -> Name:
        return self._name

    async def add(self, status: str, body: bytes, stop: Stop | None = None, events: bytes = b"") -> bool:
        """Keep the response; return whether there is room for it. `stop` is as in `ResponseStore.ask`."""
        return await self._store.ask(Operation("add", self._name, self._state(status, body), events), stop) is not None

    async def replace(self, status: str, body: bytes, events: bytes = b"") -> None:
        """Keep the next state of a response that runs."""
        await self._store.ask(Operation("replace", self._name, self._state(status, body), events))

    async def append(self, events: bytes) -> None:
        """Keep more events of a response that runs."""
        await self._store.ask(Operation("append", self._name, events=events))

    async def delete(self) -> None:
        await self._store.ask(Operation("delete", self._name))

    def _state(self, status: str, body: bytes) -> StoredResponse:
        return StoredResponse(status, self.background, self._items, body)


def joined(*lists: bytes) -> bytes:
    """Join lists that are JSON without spaces around them."""
    return b"[" + b",".join(one[1:-1] for one in lists if len(one) > 2) + b"]"


class _Answer(msgspec.Struct):
    output: msgspec.Raw


_ANSWER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Answer)
