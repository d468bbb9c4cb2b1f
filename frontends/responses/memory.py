"""The store of responses in the memory of one process, with bounds that the tenants share.

It makes room by dropping responses that have ended. One that runs is dropped only if its tenant has
more than all others and nothing else, and another tenant needs the room.
"""

from collections.abc import Callable

import attrs

from frontends.access.fair_store import FairStore
from frontends.responses.events import Events
from frontends.responses.stored import Name, Operation, Stop, StoredResponse

# Seconds after which a response is dropped.
KEEP_SECONDS = 24 * 3600.0
MAX_RESPONSES = 10_000
MAX_BYTES = 256 * 2**20


@attrs.define(eq=False)
class _Entry:
    response: StoredResponse
    stop: Stop | None = None
    # Only of a response that clients may follow.
    events: Events | None = None

    @property
    def size(self) -> int:
        return self.response.size + (0 if self.events is None else self.events.size)

    def runs(self) -> bool:
        return self.response.runs

    def end(self) -> None:
        if self.stop is not None and self.response.runs:
            self.stop()


class ResponseMemory:
    """The store; as a `ResponseStore` it is for one process.

    Args:
        clock: returns monotonic seconds.
        max_responses: maximum number of responses; 0 keeps none.
        max_bytes: maximum bytes of all responses, the items that they answer, and their events.
    """

    def __init__(self, clock: Callable[[], float], max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self.keeps = max_responses > 0
        self.entries: FairStore[_Entry] = FairStore(clock, KEEP_SECONDS, max_bytes, max_responses, _Entry.end, _Entry.runs)

    async def ask(self, operation: Operation, stop: Stop | None = None) -> StoredResponse | None:
        return self.do(operation, stop)

    def do(self, operation: Operation, stop: Stop | None = None) -> StoredResponse | None:
        """Do what `ResponseStore.ask` does."""
        name, response, events = operation.name, operation.response, operation.events
        if operation.kind == "add":
            assert response is not None
            new = _Entry(response, events=Events() if events else None)
            if new.events is not None:
                new.events.add(events)
            if not self.entries.put(*name, new, new.size):
                return None
            # Only now: the answer says that a response was not kept, and `stop` that it was dropped later.
            new.stop = stop if response.runs else None
            return response.bare(body=b"")
        found = self.entries.get(*name)
        if found is None:
            return None
        match operation.kind:
            case "replace" | "append":
                if found.response.runs:
                    self._change(name, found, response or found.response, events)
                return None
            case "events":
                return None if found.events is None else found.response.bare(found.events.read(operation.place))
            case "cancel" if found.response.runs:
                cancelled = found.response.ended("cancelled")
                self._change(name, found, cancelled)
                found.end()
                return cancelled
            case "delete":
                self.entries.pop(*name)
                found.end()
        return found.response

    def _change(self, name: Name, found: _Entry, response: StoredResponse, events: bytes = b"") -> None:
        """Give a response its next state, and more events."""
        new = _Entry(response, found.stop if response.runs else None, found.events)
        if new.events is not None:
            new.events.add(events)
            if not response.runs:
                new.events.close(response.status, response.body)
        self.entries.replace(*name, new, new.size)
